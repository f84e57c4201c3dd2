package org.edgevlm;

import android.app.ActivityManager;
import android.content.Context;

/** Memory as Android counts it: what it would give, and where it begins to kill. */
public final class AndroidMemoryProbe extends MemoryProbe {
    private final ActivityManager manager;

    public AndroidMemoryProbe(Context context) {
        manager = (ActivityManager) context.getSystemService(Context.ACTIVITY_SERVICE);
    }

    private ActivityManager.MemoryInfo read() {
        ActivityManager.MemoryInfo info = new ActivityManager.MemoryInfo();
        manager.getMemoryInfo(info);
        return info;
    }

    @Override
    public long availableBytes() {
        long kernel = super.availableBytes();
        long system = read().availMem;
        return kernel < 0 ? system : Math.min(kernel, system);
    }

    @Override
    public long thresholdBytes() {
        return read().threshold;
    }
}
