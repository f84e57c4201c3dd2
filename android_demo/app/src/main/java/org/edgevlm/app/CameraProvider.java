package org.edgevlm.app;

import android.content.ContentProvider;
import android.content.ContentValues;
import android.database.Cursor;
import android.net.Uri;
import android.os.ParcelFileDescriptor;
import java.io.File;
import java.io.FileNotFoundException;
import java.util.List;

/** Gives the camera one file to write its picture into; nothing else can be reached through it. */
public final class CameraProvider extends ContentProvider {
    private static final String AUTHORITY = "org.edgevlm.app.camera";
    private static final String PREFIX = "camera-";

    /** Returns the address of a new picture. */
    static Uri newPicture() {
        return Uri.parse("content://" + AUTHORITY + "/" + PREFIX + Long.toHexString(System.nanoTime()) + ".img");
    }

    /** Returns the file behind an address that `newPicture` made. */
    static File file(File directory, Uri uri) throws FileNotFoundException {
        List<String> path = uri.getPathSegments();
        String name = path.size() == 1 ? path.get(0) : "";
        boolean safe = name.startsWith(PREFIX) && name.endsWith(".img") && name.indexOf('/') < 0 && !name.contains("..");
        if (!AUTHORITY.equals(uri.getAuthority()) || !safe) {
            throw new FileNotFoundException(uri.toString());
        }
        return new File(directory, name);
    }

    @Override
    public boolean onCreate() {
        return true;
    }

    @Override
    public ParcelFileDescriptor openFile(Uri uri, String mode) throws FileNotFoundException {
        return ParcelFileDescriptor.open(file(getContext().getFilesDir(), uri), ParcelFileDescriptor.parseMode(mode));
    }

    @Override
    public String getType(Uri uri) {
        return "image/jpeg";
    }

    @Override
    public Cursor query(Uri uri, String[] columns, String selection, String[] arguments, String order) {
        return null;
    }

    @Override
    public Uri insert(Uri uri, ContentValues values) {
        throw new UnsupportedOperationException();
    }

    @Override
    public int delete(Uri uri, String selection, String[] arguments) {
        throw new UnsupportedOperationException();
    }

    @Override
    public int update(Uri uri, ContentValues values, String selection, String[] arguments) {
        throw new UnsupportedOperationException();
    }
}
