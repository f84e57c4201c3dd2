package org.edgevlm.app;

import android.content.ContentResolver;
import android.database.Cursor;
import android.net.Uri;
import android.provider.DocumentsContract;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import org.edgevlm.PackageSource;

/** A folder that the user picked, read through its document provider. */
final class FolderSource implements PackageSource {
    private final ContentResolver resolver;
    private final Uri tree;

    FolderSource(ContentResolver resolver, Uri tree) {
        this.resolver = resolver;
        this.tree = tree;
    }

    @Override
    public InputStream open(String path) throws IOException {
        String document = DocumentsContract.getTreeDocumentId(tree);
        for (int start = 0; start <= path.length();) {
            int slash = path.indexOf('/', start);
            int end = slash < 0 ? path.length() : slash;
            document = child(document, path.substring(start, end));
            start = end + 1;
        }
        InputStream stream = resolver.openInputStream(DocumentsContract.buildDocumentUriUsingTree(tree, document));
        if (stream == null) {
            throw new FileNotFoundException(path);
        }
        return stream;
    }

    private String child(String parent, String name) throws IOException {
        String[] columns = {
            DocumentsContract.Document.COLUMN_DOCUMENT_ID, DocumentsContract.Document.COLUMN_DISPLAY_NAME};
        Uri children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, parent);
        try (Cursor cursor = resolver.query(children, columns, null, null, null)) {
            while (cursor != null && cursor.moveToNext()) {
                if (name.equals(cursor.getString(1))) {
                    return cursor.getString(0);
                }
            }
        } catch (SecurityException refused) {
            throw new IOException("the folder may not be read", refused);
        }
        throw new FileNotFoundException(name);
    }
}
