package org.edgevlm;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.RandomAccessFile;
import java.nio.file.Files;
import java.util.concurrent.atomic.AtomicInteger;

/** {@code ImporterChecks package scratch}: what is whole is imported, whatever else leaves nothing behind. */
final class ImporterChecks {
    private final File original;
    private final File scratch;
    private int number;

    private ImporterChecks(File original, File scratch) {
        this.original = original;
        this.scratch = scratch;
    }

    public static void main(String[] args) throws Exception {
        Checks.run(new ImporterChecks(new File(args[0]), new File(args[1])));
    }

    private File fresh(String name) {
        File directory = new File(scratch, name + number++);
        Checks.that(directory.mkdirs(), directory + " cannot be made");
        return directory;
    }

    private File copy() throws IOException {
        File target = fresh("source");
        copy(original, target);
        return target;
    }

    private static void copy(File from, File to) throws IOException {
        for (File file : from.listFiles()) {
            File other = new File(to, file.getName());
            if (file.isDirectory()) {
                Checks.that(other.isDirectory() || other.mkdir(), "mkdir");
                copy(file, other);
            } else {
                Files.copy(file.toPath(), other.toPath());
            }
        }
    }

    private static PackageImporter importer(File directory) {
        return new PackageImporter(directory, "x86_64");
    }

    private static File tokenizer(File source) {
        return new File(source, "device/tokenizer.bin");
    }

    private void refuses(File source, EdgeVlmException.Kind kind, String... words) throws Exception {
        File target = fresh("target");
        Checks.refused(kind, () -> importer(target).importPackage(new PackageSource.Directory(source), null), words);
        Checks.equal(target.list().length, 0);
    }

    void checkWholePackageIsImportedAndOpens() throws Exception {
        File target = fresh("target");
        AtomicInteger last = new AtomicInteger();
        File imported = importer(target).importPackage(new PackageSource.Directory(original), (done, total) -> {
            last.set((int) (100 * done / total));
            return true;
        });
        Checks.that(last.get() >= 95, "progress ended at " + last.get());
        Checks.equal(importer(target).packages().size(), 1);
        PackageDirectory opened = PackageDirectory.open(imported);
        Checks.that(opened.planDirectory("x86_64").isDirectory(), "no plan");
        Checks.that(!new File(imported, "onnx").exists(), "the graphs were copied, which a device does not read");
    }

    void checkOnlyTheRowsOfAContextAreCountedOfOldPlansTables() throws Exception {
        String json = new String(Files.readAllBytes(new File(original, "edgevlm.json").toPath()), "UTF-8");
        Manifest made = new Manifest(json.getBytes("UTF-8"));
        String current = json.replaceAll("\"max_position_embeddings\": \\d+", "\"max_position_embeddings\": 1010000")
            .replaceAll("(\"path\": \"lib/x86_64/weights.bin\",\\s+\"size_bytes\": )\\d+", "$1" + 600_000_000);
        String old = current.replaceAll("\"plan_version\": \\d+", "\"plan_version\": 2");
        Checks.that(!old.equals(current) && !current.equals(json), "the manifest is written otherwise");
        long[] found = new long[2];
        for (int i = 0; i < 2; i++) {
            Manifest manifest = new Manifest((i == 0 ? current : old).getBytes("UTF-8"));
            found[i] = new MemoryBudget(manifest, "lib/x86_64", 4096).weightsBytes;
        }
        Checks.equal(found[0], 600_000_000L);
        Checks.equal(found[1], 600_000_000L - (1_010_000L - 4096) * made.headDim * 4);
    }

    void checkTheCacheIsCountedAsThePlanHasIt() throws Exception {
        String stated = new String(Files.readAllBytes(new File(original, "edgevlm.json").toPath()), "UTF-8");
        String unstated = stated.replaceAll("\"kv_bits\": \\[[^a-z]*\\](?=\\s*\\}\\s*\\])", "\"kv_bits\": []");
        String wide = stated.replaceAll("(\"kv_bits\": \\[\\s+\\[\\s+)8(,\\s+)8(?=[^a-z]*\\}\\s*\\])", "$116$216");
        Checks.that(!unstated.equals(stated) && !wide.equals(stated), "the manifest is written otherwise");
        long[] found = new long[3];
        String[] manifests = {stated, unstated, wide};
        for (int i = 0; i < 3; i++) {
            Manifest manifest = new Manifest(manifests[i].getBytes("UTF-8"));
            found[i] = new MemoryBudget(manifest, "lib/x86_64", 4096).keyValueBytes;
        }
        Manifest manifest = new Manifest(stated.getBytes("UTF-8"));
        long row = manifest.nKeyValueHeads * (manifest.headDim + 4L) * 2;
        Checks.equal(found[0], 4096 * manifest.nLayers * row);
        Checks.equal(found[1], found[0]);
        Checks.equal(found[2], found[0] + 4096 * (manifest.nKeyValueHeads * manifest.headDim * 8L - row));
    }

    void checkAnotherFolderIsRefused() throws Exception {
        refuses(fresh("empty"), EdgeVlmException.Kind.PACKAGE, "edgevlm.json", "not a package");
    }

    void checkMissingFile() throws Exception {
        File source = copy();
        Checks.that(tokenizer(source).delete(), "delete");
        refuses(source, EdgeVlmException.Kind.PACKAGE, "device/tokenizer.bin", "missing");
    }

    void checkShortFile() throws Exception {
        File source = copy();
        try (RandomAccessFile file = new RandomAccessFile(tokenizer(source), "rw")) {
            file.setLength(file.length() - 1);
        }
        refuses(source, EdgeVlmException.Kind.PACKAGE, "device/tokenizer.bin", "not whole");
    }

    void checkLongFile() throws Exception {
        File source = copy();
        try (FileOutputStream file = new FileOutputStream(tokenizer(source), true)) {
            file.write(0);
        }
        refuses(source, EdgeVlmException.Kind.PACKAGE, "device/tokenizer.bin", "longer");
    }

    void checkFlippedBit() throws Exception {
        File source = copy();
        try (RandomAccessFile file = new RandomAccessFile(tokenizer(source), "rw")) {
            file.seek(file.length() / 2);
            int value = file.read();
            file.seek(file.length() / 2);
            file.write(value ^ 1);
        }
        refuses(source, EdgeVlmException.Kind.PACKAGE, "sha256");
    }

    private File edited(String from, String to) throws IOException {
        File source = copy();
        File manifest = new File(source, Manifest.NAME);
        String text = Utf8.decodeStrictly(Files.readAllBytes(manifest.toPath()));
        Checks.that(text.contains(from), "'" + from + "' is not in the manifest");
        Files.write(manifest.toPath(), Utf8.encode(text.replace(from, to)));
        return source;
    }

    void checkUnsafePaths() throws Exception {
        for (String path : new String[] {"../evil", "/etc/passwd", "device/../../x", "a\\\\b", "device//x", "c:x"}) {
            refuses(edited("\"README.md\"", "\"" + path + "\""), EdgeVlmException.Kind.PACKAGE, "unsafe");
        }
    }

    void checkManifestFailures() throws Exception {
        refuses(edited("\"schema_version\": 1", "\"schema_version\": 2"), EdgeVlmException.Kind.PACKAGE, "schema version 2");
        refuses(edited("\"schema_version\": 1", "\"schema_version\": \"1\""), EdgeVlmException.Kind.PACKAGE, "schema_version");
        refuses(edited("\"schema_version\": 1,", "\"schema_version\": 1, \"schema_version\": 1,"),
            EdgeVlmException.Kind.PACKAGE, "twice");
        refuses(edited("\"schema_version\": 1", "schema_version: 1"), EdgeVlmException.Kind.PACKAGE, "JSON");
        refuses(edited("\"arch\": \"x86_64\"", "\"arch\": \"other\""), EdgeVlmException.Kind.UNSUPPORTED, "x86_64");
        refuses(edited("\"tokenizer\": \"device/tokenizer.bin\"", "\"tokenizer\": null"),
            EdgeVlmException.Kind.UNSUPPORTED, "tokenizer");
    }

    void checkTooLittleSpace() throws Exception {
        File target = fresh("target");
        File full = new File(target.getPath()) {
            private static final long serialVersionUID = 1L;

            @Override
            public long getUsableSpace() {
                return 5_000_000;
            }
        };
        Checks.refused(EdgeVlmException.Kind.BACKEND,
            () -> importer(full).importPackage(new PackageSource.Directory(original), null), "storage", "5 MB are free");
        Checks.equal(target.list().length, 0);
    }

    void checkCancelledImportLeavesNothing() throws Exception {
        File target = fresh("target");
        Checks.refused(EdgeVlmException.Kind.CANCELLED, () -> importer(target).importPackage(
            new PackageSource.Directory(original), (done, total) -> false));
        Checks.equal(target.list().length, 0);
    }

    void checkUnreadableSource() throws Exception {
        PackageSource broken = path -> {
            InputStream whole = new PackageSource.Directory(original).open(path);
            if (path.equals(Manifest.NAME)) {
                return whole;
            }
            whole.close();
            return new InputStream() {
                @Override
                public int read() throws IOException {
                    throw new IOException("the card was pulled out");
                }
            };
        };
        File target = fresh("target");
        Checks.refused(EdgeVlmException.Kind.PACKAGE, () -> importer(target).importPackage(broken, null), "pulled out");
        Checks.equal(target.list().length, 0);
    }

    void checkDamagedReplacementKeepsTheOldPackage() throws Exception {
        File target = fresh("target");
        File imported = importer(target).importPackage(new PackageSource.Directory(original), null);
        File source = copy();
        Checks.that(tokenizer(source).delete(), "delete");
        Checks.refused(EdgeVlmException.Kind.PACKAGE,
            () -> importer(target).importPackage(new PackageSource.Directory(source), null));
        PackageDirectory.open(imported).planDirectory("x86_64");
        Checks.equal(importer(target).importPackage(new PackageSource.Directory(original), null), imported);
        Checks.equal(target.list().length, 1);
    }

    void checkLeftoversOfAKilledImport() throws Exception {
        File target = fresh("target");
        File imported = importer(target).importPackage(new PackageSource.Directory(original), null);
        File partial = new File(target, ".killed.partial");
        Checks.that(partial.mkdir() && new File(partial, Manifest.NAME).createNewFile(), "mkdir");
        File aside = new File(target, "." + imported.getName() + ".replaced.partial");
        Checks.that(imported.renameTo(aside), "rename");
        Checks.equal(importer(target).packages().size(), 0);
        importer(target).removeLeftovers();
        Checks.equal(importer(target).packages().get(0), imported);
        Checks.equal(target.list().length, 1);
        Checks.refused(EdgeVlmException.Kind.PACKAGE, () -> PackageDirectory.open(partial), "no package");
    }

    void checkOpeningAnIncompletePackage() throws Exception {
        File source = copy();
        new File(source, "lib/x86_64/weights.bin").delete();
        Checks.refused(EdgeVlmException.Kind.PACKAGE, () -> PackageDirectory.open(source).planDirectory("x86_64"),
            "weights.bin", "missing");
        Checks.refused(EdgeVlmException.Kind.PACKAGE, () -> PackageDirectory.open(source).planDirectory("arm64"),
            "not compiled for arm64");
    }
}
