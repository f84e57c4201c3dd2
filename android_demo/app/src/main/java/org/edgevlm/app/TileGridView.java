package org.edgevlm.app;

import android.content.Context;
import android.graphics.Bitmap;
import android.graphics.Canvas;
import android.graphics.Color;
import android.graphics.Matrix;
import android.graphics.Paint;
import android.graphics.RectF;
import android.util.AttributeSet;
import android.view.View;
import org.edgevlm.TilePlan;

/** A picture with the grid it is cut by. */
public final class TileGridView extends View {
    private final Paint lines = new Paint();
    private final Matrix matrix = new Matrix();
    private final RectF source = new RectF();
    private final RectF target = new RectF();
    private Bitmap bitmap;
    private TilePlan plan;

    public TileGridView(Context context, AttributeSet attributes) {
        super(context, attributes);
        lines.setColor(Color.WHITE);
        lines.setStyle(Paint.Style.STROKE);
        lines.setStrokeWidth(2 * getResources().getDisplayMetrics().density);
        lines.setShadowLayer(3, 0, 0, Color.BLACK);
    }

    /** Shows an upright picture; `newPlan` may still be missing. */
    void show(Bitmap newBitmap, TilePlan newPlan) {
        bitmap = newBitmap;
        plan = newPlan;
        setVisibility(newBitmap == null ? GONE : VISIBLE);
        if (newBitmap != null) {
            setContentDescription(newPlan == null ? getResources().getString(R.string.picture_attached)
                : getResources().getString(R.string.picture_tiles, newPlan.rows, newPlan.cols));
        }
        invalidate();
    }

    @Override
    protected void onDraw(Canvas canvas) {
        super.onDraw(canvas);
        if (bitmap == null) {
            return;
        }
        source.set(0, 0, bitmap.getWidth(), bitmap.getHeight());
        target.set(0, 0, getWidth(), getHeight());
        matrix.setRectToRect(source, target, Matrix.ScaleToFit.CENTER);
        canvas.drawBitmap(bitmap, matrix, null);
        if (plan == null) {
            return;
        }
        matrix.mapRect(target, source);
        for (int row = 0; row <= plan.rows; row++) {
            float y = target.top + (target.bottom - target.top) * row / plan.rows;
            canvas.drawLine(target.left, y, target.right, y, lines);
        }
        for (int col = 0; col <= plan.cols; col++) {
            float x = target.left + (target.right - target.left) * col / plan.cols;
            canvas.drawLine(x, target.top, x, target.bottom, lines);
        }
    }
}
