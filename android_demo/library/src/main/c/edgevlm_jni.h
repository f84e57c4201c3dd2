/* What the JNI files share. */
#ifndef EDGEVLM_JNI_H
#define EDGEVLM_JNI_H

#include <jni.h>
#include <stdint.h>

#define EV_JNI(type, name) JNIEXPORT type JNICALL Java_org_edgevlm_JniEngine_##name

/* Address of a direct buffer of at least `size_bytes`; NULL for any other object. */
void *ev_jni_buffer(JNIEnv *env, jobject buffer, int64_t size_bytes);

#endif
