package org.edgevlm;

import java.io.File;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;

/** Where a package is imported from: a directory, the app's assets, a folder that the user picked. */
public interface PackageSource {
    /** Opens a file of the package by its relative path. Raises FileNotFoundException when there is none. */
    InputStream open(String path) throws IOException;

    /** A directory of the file system. */
    final class Directory implements PackageSource {
        private final File root;

        public Directory(File root) {
            this.root = root;
        }

        @Override
        public InputStream open(String path) throws IOException {
            File file = new File(root, path);
            if (!file.isFile()) {
                throw new FileNotFoundException(path);
            }
            return new FileInputStream(file);
        }
    }
}
