package org.edgevlm;

import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/** A decoded picture and how it will be cut. Equal keys mean equal features. */
final class Picture {
    final Pixels pixels;
    final TilePlan plan;
    final int maxTiles;
    private final String content;

    private Picture(Pixels pixels, TilePlan plan, int maxTiles, String content) {
        this.pixels = pixels;
        this.plan = plan;
        this.maxTiles = maxTiles;
        this.content = content;
    }

    static Picture of(Pixels pixels, NativeEngine engine, ImageSpec spec, int maxTiles) throws EdgeVlmException {
        TilePlan plan = engine.plan(spec, pixels.uprightHeight(), pixels.uprightWidth(), maxTiles);
        return new Picture(pixels, plan, maxTiles, digest(pixels));
    }

    /** The same picture with at most `maxTiles` tiles in its grid. */
    Picture within(int budget, NativeEngine engine, ImageSpec spec) throws EdgeVlmException {
        TilePlan fewer = engine.plan(spec, pixels.uprightHeight(), pixels.uprightWidth(), budget);
        return new Picture(pixels, fewer, budget, content);
    }

    String key() {
        return content + ":" + plan;
    }

    private static String digest(Pixels pixels) throws EdgeVlmException {
        try {
            MessageDigest digest = MessageDigest.getInstance("SHA-256");
            String size = pixels.width + "x" + pixels.height + "x" + pixels.pixelBytes + ":" + pixels.orientation + ":";
            digest.update(Utf8.encode(size));
            ByteBuffer bytes = pixels.bytes.duplicate();
            bytes.clear();
            digest.update(bytes);
            return hex(digest.digest());
        } catch (NoSuchAlgorithmException error) {
            throw new EdgeVlmException(EdgeVlmException.Kind.BACKEND, "this device has no SHA-256", error);
        }
    }

    static String hex(byte[] bytes) {
        StringBuilder text = new StringBuilder();
        for (byte b : bytes) {
            text.append("0123456789abcdef".charAt(b >> 4 & 15)).append("0123456789abcdef".charAt(b & 15));
        }
        return text.toString();
    }
}
