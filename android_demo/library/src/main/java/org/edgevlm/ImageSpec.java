package org.edgevlm;

import java.util.Arrays;
import java.util.List;

/** The package's processor, as the C engine takes it. */
final class ImageSpec {
    static final long MAX_PIXELS = 120_000_000L;
    static final int MAX_SIDE = 65_535;
    static final int MAX_PINPOINTS = 64;
    private static final List<String> SCHEMES = Arrays.asList("square", "relaxed", "tile_grid", "internvl", "llava_next");
    private static final List<String> RESAMPLES = Arrays.asList("nearest", "lanczos", "bilinear", "bicubic");
    private static final List<String> THUMBNAILS = Arrays.asList("none", "first", "last");

    final int tilePx;
    final boolean thumbnailFirst;
    /** scheme, tile_px, resample, thumbnail, max_rows, max_cols, max_tiles, longest_edge_px, n_pinpoints, pinpoints. */
    final int[] integers;
    /** relaxed_alpha, rescale_factor, mean of R G B, std of R G B. */
    final double[] reals;

    ImageSpec(Fields processor) throws EdgeVlmException {
        tilePx = processor.integer("tile_px");
        int thumbnail = index(THUMBNAILS, processor.text("thumbnail", "none"), "thumbnail");
        thumbnailFirst = thumbnail == 1;
        List<?> points = processor.has("grid_pinpoints") ? processor.list("grid_pinpoints")
            : java.util.Collections.emptyList();
        if (tilePx < 1 || tilePx > 8192 || points.size() > MAX_PINPOINTS) {
            throw Manifest.damaged("processor.tile_px is " + tilePx + " with " + points.size() + " grid_pinpoints");
        }
        integers = new int[9 + 2 * points.size()];
        integers[0] = index(SCHEMES, processor.text("scheme"), "scheme");
        integers[1] = tilePx;
        integers[2] = index(RESAMPLES, processor.text("resample"), "resample");
        integers[3] = thumbnail;
        integers[4] = processor.integer("max_rows", 1);
        integers[5] = processor.integer("max_cols", 1);
        integers[6] = processor.integer("max_tiles", 1);
        integers[7] = processor.has("longest_edge_px") ? processor.integer("longest_edge_px") : 0;
        integers[8] = points.size();
        for (int i = 0; i < points.size(); i++) {
            List<?> pair = Fields.asList(points.get(i), "processor.grid_pinpoints");
            for (int side = 0; side < 2; side++) {
                integers[9 + 2 * i + side] = Fields.asInteger(
                    pair.size() == 2 ? pair.get(side) : null, "processor.grid_pinpoints");
            }
        }
        double[] mean = processor.reals("image_mean");
        double[] std = processor.reals("image_std");
        if (mean.length != 3 || std.length != 3) {
            throw Manifest.damaged("processor.image_mean and image_std are not of three channels");
        }
        reals = new double[] {processor.real("relaxed_alpha", 0.1), processor.real("rescale_factor", 1.0 / 255),
            mean[0], mean[1], mean[2], std[0], std[1], std[2]};
    }

    private static int index(List<String> known, String value, String what) throws EdgeVlmException {
        int found = known.indexOf(value);
        if (found < 0) {
            throw new EdgeVlmException(EdgeVlmException.Kind.UNSUPPORTED,
                Manifest.NAME + ": processor." + what + " '" + value + "' is not implemented on devices");
        }
        return found;
    }
}
