package android.provider;

public final class DocumentsContract {
    public static native String getTreeDocumentId(android.net.Uri tree);
    public static native android.net.Uri buildDocumentUriUsingTree(android.net.Uri tree, String document);
    public static native android.net.Uri buildChildDocumentsUriUsingTree(android.net.Uri tree, String parent);
    public static final class Document {
        public static final String COLUMN_DOCUMENT_ID = "document_id";
        public static final String COLUMN_DISPLAY_NAME = "_display_name";
    }
}
