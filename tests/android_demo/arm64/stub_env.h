/* A JNIEnv without a Java machine: arrays and direct buffers, and the functions that edgevlm's JNI part may call.
 *
 * As strict as `java -Xcheck:jni`: a wrong type, an index out of bounds or any other function of JNI ends the program with
 * 99 and a sentence. */
#ifndef STUB_ENV_H
#define STUB_ENV_H

#include <jni.h>
#include <stddef.h>

enum { STUB_FAILURE = 99 };

JNIEnv *stub_env(void);

/* Java arrays of `n` elements, copied from `values` unless that is NULL. They live until the process ends. */
jbyteArray stub_bytes(const void *values, jsize n);
jintArray stub_ints(const jint *values, jsize n);
jlongArray stub_longs(jsize n);
jdoubleArray stub_doubles(const jdouble *values, jsize n);
jobjectArray stub_objects(jobject const *values, jsize n);

/* A direct ByteBuffer over `size` bytes at `address`. */
jobject stub_buffer(void *address, size_t size);

/* The elements of an array. */
void *stub_elements(jobject array);
jsize stub_length(jobject array);

/* Local references that the library got and has not given back since the last call of this function. */
int stub_take_local_references(void);

#endif
