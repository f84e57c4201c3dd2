package org.edgevlm.app;

import android.content.ContentResolver;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.media.ExifInterface;
import android.net.Uri;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.concurrent.Future;
import org.edgevlm.Bitmaps;
import org.edgevlm.Conversation;
import org.edgevlm.EdgeVlmException;
import org.edgevlm.TilePlan;

/** Pictures as files of the app: copied in once, decoded when they are attached. */
final class PictureFiles implements ChatController.PictureReader {
    private static final int BLOCK_BYTES = 1 << 16;
    private static final long MAX_FILE_BYTES = 64L << 20;
    /** Pictures with more pixels are read at half size, as often as it takes. */
    private static final long MAX_PIXELS = 12_500_000;

    /** Copies what `uri` names into `directory` and returns the file's name. */
    static String copyIn(ContentResolver resolver, Uri uri, File directory) throws IOException {
        String name = "picture-" + Long.toHexString(System.nanoTime()) + ".img";
        File partial = new File(directory, name + ".partial");
        try (InputStream in = resolver.openInputStream(uri); FileOutputStream out = new FileOutputStream(partial)) {
            if (in == null) {
                throw new IOException("the picture cannot be opened");
            }
            byte[] block = new byte[BLOCK_BYTES];
            long total = 0;
            for (int n = in.read(block); n >= 0; n = in.read(block)) {
                total += n;
                if (total > MAX_FILE_BYTES) {
                    throw new IOException("the picture's file is larger than 64 MB");
                }
                out.write(block, 0, n);
            }
        } catch (SecurityException refused) {
            throw new IOException("the picture may not be read", refused);
        }
        if (!partial.renameTo(new File(directory, name))) {
            throw new IOException("the picture cannot be kept");
        }
        return name;
    }

    @Override
    public Future<TilePlan> attach(Conversation conversation, File picture, boolean restore) throws EdgeVlmException {
        Bitmap bitmap = decode(picture, MAX_PIXELS);
        try {
            int orientation = orientation(picture);
            return restore ? Bitmaps.restoreImage(conversation, bitmap, orientation)
                : Bitmaps.addImage(conversation, bitmap, orientation);
        } finally {
            bitmap.recycle();
        }
    }

    /** Returns the pixels as stored, not turned. */
    static Bitmap decode(File picture, long maxPixels) throws EdgeVlmException {
        BitmapFactory.Options options = new BitmapFactory.Options();
        options.inJustDecodeBounds = true;
        BitmapFactory.decodeFile(picture.getPath(), options);
        if (options.outWidth < 1 || options.outHeight < 1) {
            throw new EdgeVlmException(EdgeVlmException.Kind.IMAGE, "the file is not a picture that Android can read");
        }
        int sample = 1;
        while ((long) options.outWidth * options.outHeight / ((long) sample * sample) > maxPixels) {
            sample *= 2;
        }
        options.inJustDecodeBounds = false;
        options.inSampleSize = sample;
        options.inPreferredConfig = Bitmap.Config.ARGB_8888;
        try {
            Bitmap bitmap = BitmapFactory.decodeFile(picture.getPath(), options);
            if (bitmap != null) {
                return bitmap;
            }
        } catch (OutOfMemoryError error) {
            throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND, "there is no memory for this picture", error);
        }
        throw new EdgeVlmException(EdgeVlmException.Kind.IMAGE, "the picture is damaged");
    }

    /** Returns EXIF's orientation, 1 when there is none. */
    static int orientation(File picture) {
        try {
            int found = new ExifInterface(picture.getPath()).getAttributeInt(ExifInterface.TAG_ORIENTATION, 1);
            return found >= 1 && found <= 8 ? found : 1;
        } catch (IOException unreadable) {
            return 1;
        }
    }
}
