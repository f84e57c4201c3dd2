package org.edgevlm;

import android.graphics.Bitmap;
import android.graphics.Canvas;
import android.graphics.Color;
import java.nio.ByteBuffer;
import java.util.concurrent.Future;

/** Pictures as Android holds them. */
public final class Bitmaps {
    private static final int PIXEL_BYTES = 4;

    private Bitmaps() {
    }

    /**
     * Attaches a bitmap to the next question, turned by EXIF's `orientation` (1: it is upright). Transparency is put on white,
     * as on the desktop.
     */
    public static Future<TilePlan> addImage(Conversation conversation, Bitmap bitmap, int orientation)
            throws EdgeVlmException {
        return conversation.addImage(pixels(bitmap), bitmap.getWidth(), bitmap.getHeight(), PIXEL_BYTES, orientation);
    }

    /** As {@link #addImage}, for a turn to restore. */
    public static Future<TilePlan> restoreImage(Conversation conversation, Bitmap bitmap, int orientation)
            throws EdgeVlmException {
        return conversation.restoreImage(
            pixels(bitmap), bitmap.getWidth(), bitmap.getHeight(), PIXEL_BYTES, orientation);
    }

    private static ByteBuffer pixels(Bitmap bitmap) throws EdgeVlmException {
        Bitmap opaque = bitmap;
        try {
            if (bitmap.hasAlpha() || bitmap.getConfig() != Bitmap.Config.ARGB_8888) {
                opaque = Bitmap.createBitmap(bitmap.getWidth(), bitmap.getHeight(), Bitmap.Config.ARGB_8888);
                opaque.eraseColor(Color.WHITE);
                new Canvas(opaque).drawBitmap(bitmap, 0, 0, null);
            }
            int rowBytes = opaque.getWidth() * PIXEL_BYTES;
            if (opaque.getRowBytes() != rowBytes) {
                throw new EdgeVlmException(EdgeVlmException.Kind.IMAGE, "the bitmap's rows are padded to "
                    + opaque.getRowBytes() + " bytes, expected " + rowBytes);
            }
            ByteBuffer bytes = ByteBuffer.allocateDirect(rowBytes * opaque.getHeight());
            opaque.copyPixelsToBuffer(bytes);
            bytes.clear();
            return bytes;
        } catch (OutOfMemoryError error) {
            throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND, "there is no memory for a picture of "
                + bitmap.getWidth() + " x " + bitmap.getHeight() + " pixels", error);
        } finally {
            if (opaque != bitmap) {
                opaque.recycle();
            }
        }
    }
}
