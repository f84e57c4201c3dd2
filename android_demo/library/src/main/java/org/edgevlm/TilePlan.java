package org.edgevlm;

/** How one picture is cut: a grid of tiles, row by row, and perhaps a thumbnail of the whole. */
public final class TilePlan {
    public final int rows;
    public final int cols;
    public final boolean thumbnail;
    public final boolean thumbnailFirst;

    public TilePlan(int rows, int cols, boolean thumbnail, boolean thumbnailFirst) {
        this.rows = rows;
        this.cols = cols;
        this.thumbnail = thumbnail;
        this.thumbnailFirst = thumbnailFirst;
    }

    /** Tiles that are encoded, with the thumbnail. */
    public int nTiles() {
        return rows * cols + (thumbnail ? 1 : 0);
    }

    @Override
    public String toString() {
        return rows + "x" + cols + (thumbnail ? "+thumbnail" : "");
    }
}
