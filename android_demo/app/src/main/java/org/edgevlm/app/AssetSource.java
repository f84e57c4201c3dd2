package org.edgevlm.app;

import android.content.res.AssetManager;
import java.io.IOException;
import java.io.InputStream;
import org.edgevlm.PackageSource;

/** The package that is bundled with the app, stored uncompressed, copied once. */
final class AssetSource implements PackageSource {
    private final AssetManager assets;
    private final String folder;

    AssetSource(AssetManager assets, String folder) {
        this.assets = assets;
        this.folder = folder;
    }

    static boolean has(AssetManager assets, String folder) {
        try (InputStream manifest = assets.open(folder + "/edgevlm.json")) {
            return manifest.read() >= 0;
        } catch (IOException none) {
            return false;
        }
    }

    @Override
    public InputStream open(String path) throws IOException {
        return assets.open(folder + "/" + path, AssetManager.ACCESS_STREAMING);
    }
}
