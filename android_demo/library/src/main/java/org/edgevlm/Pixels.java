package org.edgevlm;

import java.nio.ByteBuffer;

/** A decoded picture: rows of R G B (3 bytes a pixel) or R G B X (4 bytes), and how it must be turned. */
final class Pixels {
    final ByteBuffer bytes;
    final int width;
    final int height;
    final int pixelBytes;
    /** EXIF orientation, 1 to 8. */
    final int orientation;

    Pixels(ByteBuffer bytes, int width, int height, int pixelBytes, int orientation) throws EdgeVlmException {
        if (width < 1 || height < 1 || (long) width * height > ImageSpec.MAX_PIXELS
                || Math.max(width, height) > ImageSpec.MAX_SIDE) {
            throw new EdgeVlmException(EdgeVlmException.Kind.IMAGE, "the picture is " + width + " x " + height
                + " pixels; the limits are " + ImageSpec.MAX_PIXELS + " pixels and " + ImageSpec.MAX_SIDE + " a side");
        }
        if (!bytes.isDirect() || bytes.capacity() < (long) width * height * pixelBytes) {
            throw new EdgeVlmException(EdgeVlmException.Kind.IMAGE, "the picture of " + width + " x " + height
                + " pixels has " + bytes.capacity() + " bytes, expected " + (long) width * height * pixelBytes);
        }
        this.bytes = bytes;
        this.width = width;
        this.height = height;
        this.pixelBytes = pixelBytes;
        this.orientation = orientation;
    }

    private boolean isSideways() {
        return orientation >= 5 && orientation <= 8;
    }

    int uprightWidth() {
        return isSideways() ? height : width;
    }

    int uprightHeight() {
        return isSideways() ? width : height;
    }
}
