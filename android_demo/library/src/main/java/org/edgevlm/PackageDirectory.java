package org.edgevlm;

import java.io.File;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;

/** A package on this device: the manifest, and the files that a device reads, checked for presence and size. */
final class PackageDirectory {
    static final String PARTIAL_SUFFIX = ".partial";

    final File root;
    final Manifest manifest;

    private PackageDirectory(File root, Manifest manifest) {
        this.root = root;
        this.manifest = manifest;
    }

    static PackageDirectory open(File root) throws EdgeVlmException {
        if (!root.isDirectory()) {
            throw refused(root + ": there is no package directory here; import one");
        }
        if (root.getName().endsWith(PARTIAL_SUFFIX)) {
            throw refused(root + ": this is an unfinished import; import the package again");
        }
        File file = new File(root, Manifest.NAME);
        if (!file.isFile()) {
            throw refused(root + ": no " + Manifest.NAME + " here, so this is not a package");
        }
        if (file.length() > Manifest.MAX_BYTES) {
            throw refused(file + ": " + file.length() + " bytes is more than a manifest may have");
        }
        PackageDirectory directory = new PackageDirectory(root, new Manifest(readAll(file)));
        directory.manifest.requireDeviceFiles();
        directory.file(directory.manifest.tokenizerPath);
        directory.file(directory.manifest.chatPath);
        return directory;
    }

    private static EdgeVlmException refused(String message) {
        return new EdgeVlmException(EdgeVlmException.Kind.PACKAGE, message);
    }

    /** Returns the directory of what was compiled for `arch`, with all its files there and whole. */
    File planDirectory(String arch) throws EdgeVlmException {
        String directory = manifest.planDirectory(arch);
        if (directory == null) {
            throw refused(root + ": the package is not compiled for " + arch + "; run `edgevlm compile --target " + arch
                + "` on it");
        }
        for (Manifest.Entry entry : manifest.files) {
            if (entry.path.startsWith(directory + "/")) {
                file(entry.path);
            }
        }
        return new File(root, directory);
    }

    private File file(String path) throws EdgeVlmException {
        File file = new File(root, path);
        Manifest.Entry entry = manifest.file(path);
        if (!file.isFile()) {
            throw refused(file + ": the file is missing; import the package again");
        }
        if (file.length() != entry.sizeBytes) {
            throw refused(file + ": " + file.length() + " bytes, the manifest says " + entry.sizeBytes
                + "; the copy is not whole, import the package again");
        }
        return file;
    }

    byte[] read(String path) throws EdgeVlmException {
        return readAll(file(path));
    }

    /** Maps a file, so that it takes no heap. */
    ByteBuffer map(String path) throws EdgeVlmException {
        File file = file(path);
        try (RandomAccessFile in = new RandomAccessFile(file, "r")) {
            return in.getChannel().map(FileChannel.MapMode.READ_ONLY, 0, in.length());
        } catch (IOException error) {
            throw new EdgeVlmException(EdgeVlmException.Kind.PACKAGE,
                file + ": cannot be read (" + error.getMessage() + ")", error);
        }
    }

    private static byte[] readAll(File file) throws EdgeVlmException {
        try (RandomAccessFile in = new RandomAccessFile(file, "r")) {
            byte[] bytes = new byte[(int) in.length()];
            in.readFully(bytes);
            return bytes;
        } catch (IOException error) {
            throw new EdgeVlmException(EdgeVlmException.Kind.PACKAGE,
                file + ": cannot be read (" + error.getMessage() + ")", error);
        }
    }
}
