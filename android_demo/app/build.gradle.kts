plugins {
    id("com.android.application")
}

android {
    namespace = "org.edgevlm.app"
    compileSdk = 34

    defaultConfig {
        applicationId = "org.edgevlm.app"
        minSdk = 24
        targetSdk = 34
        versionCode = 1000
        versionName = "0.1.0"
        ndk {
            abiFilters += "arm64-v8a"
        }
    }

    androidResources {
        // A bundled package is stored as it is, and copied once.
        noCompress += listOf("bin", "json")
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
}

dependencies {
    implementation(project(":library"))
}
