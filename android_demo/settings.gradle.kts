// For those who have the Android SDK and NDK. `make apk` does not use Gradle, and this path is not exercised by the tests.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "edgevlm"
include(":library", ":app")
