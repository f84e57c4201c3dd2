package org.edgevlm;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileDescriptor;
import java.io.FileNotFoundException;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.List;

/**
 * Copies a package onto the device: space first, then the bytes with their hashes, then a rename. What is not whole has
 * another name and is never taken for a package; a later import removes it.
 */
public final class PackageImporter {
    private static final int BLOCK_BYTES = 1 << 18;
    private static final long MARGIN_BYTES = 16L << 20;
    private static final String ASIDE = ".replaced" + PackageDirectory.PARTIAL_SUFFIX;

    /** Hears how far a copy is, and may end it. */
    public interface Progress {
        /** Returns false to cancel. */
        boolean report(long doneBytes, long totalBytes);
    }

    private final File directory;
    private final String arch;

    /** Packages are put into `directory`; `arch` is "arm64" or "x86_64", null this machine's. */
    public PackageImporter(File directory, String arch) {
        this.directory = directory;
        this.arch = arch == null ? Options.hostArch() : arch;
    }

    /** Returns the packages that are here, whole ones only. */
    public List<File> packages() {
        return packages(directory);
    }

    /** Returns the packages in a directory, whole ones only, by name. */
    public static List<File> packages(File directory) {
        List<File> found = new ArrayList<>();
        File[] entries = directory.listFiles();
        if (entries != null) {
            java.util.Arrays.sort(entries);
            for (File entry : entries) {
                boolean whole = !entry.getName().endsWith(PackageDirectory.PARTIAL_SUFFIX);
                if (whole && new File(entry, Manifest.NAME).isFile()) {
                    found.add(entry);
                }
            }
        }
        return found;
    }

    /** Removes what killed imports left; a package that a killed replacement had set aside gets its name back. */
    public void removeLeftovers() {
        File[] entries = directory.listFiles();
        if (entries == null) {
            return;
        }
        for (File entry : entries) {
            if (!entry.getName().endsWith(PackageDirectory.PARTIAL_SUFFIX)) {
                continue;
            }
            if (entry.getName().endsWith(ASIDE)) {
                File target = new File(directory,
                    entry.getName().substring(1, entry.getName().length() - ASIDE.length()));
                if (!target.exists() && entry.renameTo(target)) {
                    continue;
                }
            }
            delete(entry);
        }
    }

    /**
     * Imports a package and returns its directory. One of the same name is replaced when the new one is whole. Refuses a
     * package that this device could not run.
     */
    public File importPackage(PackageSource source, Progress progress) throws EdgeVlmException {
        removeLeftovers();
        byte[] manifestBytes = readManifest(source);
        Manifest manifest = new Manifest(manifestBytes);
        manifest.requireDeviceFiles();
        List<Manifest.Entry> needed = needed(manifest);
        long total = manifestBytes.length;
        for (Manifest.Entry entry : needed) {
            total += entry.sizeBytes;
        }
        if (!directory.isDirectory() && !directory.mkdirs()) {
            throw backend(directory + ": the directory cannot be made");
        }
        long free = directory.getUsableSpace();
        if (free < total + MARGIN_BYTES) {
            throw backend("the package needs " + MemoryBudget.megabytes(total + MARGIN_BYTES) + " of storage, "
                + MemoryBudget.megabytes(free) + " are free; free some space and import it again");
        }
        String name = fileName(manifest.name);
        File partial = new File(directory, "." + name + PackageDirectory.PARTIAL_SUFFIX);
        boolean whole = false;
        try {
            long done = 0;
            for (Manifest.Entry entry : needed) {
                copy(source, entry, new File(partial, entry.path), progress, done, total);
                done += entry.sizeBytes;
            }
            write(new File(partial, Manifest.NAME), manifestBytes);
            File target = rename(partial, name);
            whole = true;
            return target;
        } finally {
            if (!whole) {
                delete(partial);
            }
        }
    }

    /** What a device reads: its tokenizer, its template, what is compiled for it, and the words about it. */
    private List<Manifest.Entry> needed(Manifest manifest) throws EdgeVlmException {
        String plan = manifest.planDirectory(arch);
        if (plan == null) {
            throw new EdgeVlmException(EdgeVlmException.Kind.UNSUPPORTED, "the package is not compiled for " + arch
                + "; run `edgevlm compile --target " + arch + "` on it first");
        }
        List<Manifest.Entry> needed = new ArrayList<>();
        for (Manifest.Entry entry : manifest.files) {
            boolean device = entry.path.startsWith("device/") || entry.path.startsWith(plan + "/");
            if (device || entry.path.equals("README.md") || entry.path.equals("NOTICE")) {
                needed.add(entry);
            }
        }
        return needed;
    }

    private static EdgeVlmException backend(String message) {
        return new EdgeVlmException(EdgeVlmException.Kind.BACKEND, message);
    }

    private static EdgeVlmException damaged(String path, String what) {
        return new EdgeVlmException(EdgeVlmException.Kind.PACKAGE,
            path + ": " + what + "; copy or export the package again");
    }

    private static byte[] readManifest(PackageSource source) throws EdgeVlmException {
        try (InputStream in = source.open(Manifest.NAME)) {
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            byte[] block = new byte[BLOCK_BYTES];
            for (int n = in.read(block); n >= 0; n = in.read(block)) {
                out.write(block, 0, n);
                if (out.size() > Manifest.MAX_BYTES) {
                    throw damaged(Manifest.NAME, "it is larger than a manifest may be");
                }
            }
            return out.toByteArray();
        } catch (FileNotFoundException error) {
            throw new EdgeVlmException(EdgeVlmException.Kind.PACKAGE,
                "there is no " + Manifest.NAME + " in this folder, so it is not a package", error);
        } catch (IOException error) {
            throw damaged(Manifest.NAME, "it cannot be read (" + error.getMessage() + ")");
        }
    }

    private static void copy(PackageSource source, Manifest.Entry entry, File target, Progress progress, long before,
            long total) throws EdgeVlmException {
        MessageDigest digest;
        try {
            digest = MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND, "this device has no SHA-256", error);
        }
        long done = 0;
        try (InputStream in = source.open(entry.path)) {
            makeParent(target);
            try (FileOutputStream out = new FileOutputStream(target)) {
                byte[] block = new byte[BLOCK_BYTES];
                for (int n = in.read(block); n >= 0; n = in.read(block)) {
                    done += n;
                    if (done > entry.sizeBytes) {
                        throw damaged(entry.path, "it is longer than the manifest says (" + entry.sizeBytes + " bytes)");
                    }
                    digest.update(block, 0, n);
                    write(out, block, n);
                    if (progress != null && !progress.report(before + done, total)) {
                        throw new EdgeVlmException(EdgeVlmException.Kind.CANCELLED, "the import was cancelled");
                    }
                }
                sync(out);
            }
        } catch (FileNotFoundException error) {
            throw damaged(entry.path, "the file is missing");
        } catch (IOException error) {
            throw damaged(entry.path, "it cannot be read (" + error.getMessage() + ")");
        }
        if (done != entry.sizeBytes) {
            throw damaged(entry.path, done + " bytes, the manifest says " + entry.sizeBytes + "; the copy is not whole");
        }
        String found = Picture.hex(digest.digest());
        if (!found.equals(entry.sha256)) {
            throw damaged(entry.path, "its sha256 is " + found.substring(0, 16) + "..., the manifest says "
                + entry.sha256.substring(0, 16) + "...");
        }
    }

    private static void makeParent(File target) throws EdgeVlmException {
        File parent = target.getParentFile();
        if (!parent.isDirectory() && !parent.mkdirs()) {
            throw backend(parent + ": the directory cannot be made");
        }
    }

    /** A failure to write is the device's, a failure to read the package's. */
    private static void write(FileOutputStream out, byte[] block, int n) throws EdgeVlmException {
        try {
            out.write(block, 0, n);
        } catch (IOException error) {
            throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND,
                "the storage is full or broken (" + error.getMessage() + "); nothing was kept", error);
        }
    }

    private static void write(File target, byte[] bytes) throws EdgeVlmException {
        try {
            makeParent(target);
            try (FileOutputStream out = new FileOutputStream(target)) {
                write(out, bytes, bytes.length);
                sync(out);
            }
        } catch (IOException error) {
            throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND,
                target + ": cannot be written (" + error.getMessage() + ")", error);
        }
    }

    private static void sync(FileOutputStream out) throws IOException {
        FileDescriptor descriptor = out.getFD();
        descriptor.sync();
    }

    private File rename(File partial, String name) throws EdgeVlmException {
        File target = new File(directory, name);
        File aside = new File(directory, "." + name + ASIDE);
        boolean had = target.exists();
        if (had && !target.renameTo(aside)) {
            throw backend(target + ": the old package cannot be set aside");
        }
        if (!partial.renameTo(target)) {
            if (had && !aside.renameTo(target)) {
                throw backend(target + ": neither the new nor the old package can be put in place");
            }
            throw backend(target + ": the package cannot be put in place");
        }
        delete(aside);
        return target;
    }

    private static String fileName(String name) {
        StringBuilder out = new StringBuilder();
        for (int i = 0; i < name.length() && out.length() < 100; i++) {
            char c = name.charAt(i);
            boolean kept = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || "._+-".indexOf(c) >= 0;
            out.append(kept ? c : '-');
        }
        String result = out.toString();
        while (result.startsWith(".") || result.startsWith("-")) {
            result = result.substring(1);
        }
        return result.isEmpty() || result.endsWith(PackageDirectory.PARTIAL_SUFFIX) ? "package" : result;
    }

    /** Removes a file or a directory with everything in it; links are removed, not followed. */
    public static boolean delete(File file) {
        File[] entries = file.isDirectory() && !isLink(file) ? file.listFiles() : null;
        if (entries != null) {
            for (File entry : entries) {
                delete(entry);
            }
        }
        return file.delete();
    }

    private static boolean isLink(File file) {
        try {
            File parent = file.getAbsoluteFile().getParentFile();
            File canonicalParent = parent == null ? null : parent.getCanonicalFile();
            File place = new File(canonicalParent, file.getName());
            return !place.getCanonicalFile().equals(place.getAbsoluteFile());
        } catch (IOException error) {
            return true;
        }
    }
}
