/* What the JNI files share. */
#ifndef EDGEVLM_JNI_H
#define EDGEVLM_JNI_H

#include <jni.h>
#include <stdint.h>

#include "edgevlm.h"

#define EV_JNI(type, name) JNIEXPORT type JNICALL Java_org_edgevlm_JniEngine_##name

/* Address of a direct buffer of at least `size_bytes`; NULL for any other object. */
void *ev_jni_buffer(JNIEnv *env, jobject buffer, int64_t size_bytes);
/* The flag in a direct buffer (org.edgevlm.Cancellation); NULL for null. */
const ev_cancel_flag *ev_jni_cancel(JNIEnv *env, jobject flag);

#endif
