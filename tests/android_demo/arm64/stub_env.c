#include "stub_env.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum { BYTES, INTS, LONGS, DOUBLES, OBJECTS, BUFFER } kind;

static const char *const kind_names[] = {"byte[]", "int[]", "long[]", "double[]", "Object[]", "ByteBuffer"};
static const size_t element_bytes[] = {1, sizeof(jint), sizeof(jlong), sizeof(jdouble), sizeof(jobject), 1};

/* Behind a jobject. `size` counts elements, of a buffer bytes. */
typedef struct {
    kind is;
    size_t size;
    void *data;
} object;

static int local_references;

static void stop(const char *what)
{
    fprintf(stderr, "stub JNIEnv: %s\n", what);
    exit(STUB_FAILURE);
}

static object *made(kind is, size_t size, void *data)
{
    object *self = malloc(sizeof *self);
    if (self == NULL)
        stop("no memory");
    *self = (object){is, size, data};
    return self;
}

static object *array(kind is, const void *values, jsize n)
{
    if (n < 0)
        stop("an array of negative length");
    size_t bytes = (size_t)n * element_bytes[is];
    void *data = calloc(1, bytes + 1);
    if (data == NULL)
        stop("no memory");
    if (values != NULL && bytes > 0)
        memcpy(data, values, bytes);
    return made(is, (size_t)n, data);
}

static object *checked(jobject reference, kind is)
{
    object *self = reference;
    if (self == NULL || self->is != is) {
        fprintf(stderr, "found %s: ", self == NULL ? "null" : kind_names[self->is]);
        stop(kind_names[is]);
    }
    return self;
}

/* Address of elements [start, start + n) of an array of that kind. */
static char *region(jobject reference, kind is, jsize start, jsize n)
{
    object *self = checked(reference, is);
    if (start < 0 || n < 0 || (size_t)start + (size_t)n > self->size)
        stop("ArrayIndexOutOfBoundsException");
    return (char *)self->data + (size_t)start * element_bytes[is];
}

#define REGIONS(name, is, type)                                                                      \
    static void get_##name(JNIEnv *env, jobject from, jsize start, jsize n, type *to)               \
    {                                                                                                \
        (void)env;                                                                                   \
        memcpy(to, region(from, is, start, n), (size_t)n * sizeof *to);                              \
    }                                                                                                \
    static void set_##name(JNIEnv *env, jobject to, jsize start, jsize n, const type *from)          \
    {                                                                                                \
        (void)env;                                                                                   \
        memcpy(region(to, is, start, n), from, (size_t)n * sizeof *from);                            \
    }

REGIONS(bytes, BYTES, jbyte)
REGIONS(ints, INTS, jint)
REGIONS(longs, LONGS, jlong)
REGIONS(doubles, DOUBLES, jdouble)

static jsize get_array_length(JNIEnv *env, jarray reference)
{
    (void)env;
    object *self = reference;
    if (self == NULL || self->is == BUFFER)
        stop("GetArrayLength of what is no array");
    return (jsize)self->size;
}

static jbyteArray new_byte_array(JNIEnv *env, jsize n)
{
    (void)env;
    local_references++;
    return array(BYTES, NULL, n);
}

static jobject get_object_array_element(JNIEnv *env, jobjectArray from, jsize index)
{
    (void)env;
    jobject element;
    memcpy(&element, region(from, OBJECTS, index, 1), sizeof element);
    local_references++;
    return element;
}

static void delete_local_ref(JNIEnv *env, jobject reference)
{
    (void)env;
    if (reference != NULL && --local_references < 0)
        stop("more local references were given back than taken");
}

static void *get_direct_buffer_address(JNIEnv *env, jobject reference)
{
    (void)env;
    return checked(reference, BUFFER)->data;
}

/* As Java's: -1 for an object that is no direct buffer. */
static jlong get_direct_buffer_capacity(JNIEnv *env, jobject reference)
{
    (void)env;
    object *self = reference;
    return self != NULL && self->is == BUFFER ? (jlong)self->size : -1;
}

static void missing(void)
{
    stop("the library called a function of JNI that it is not known to need");
}

JNIEnv *stub_env(void)
{
    static struct JNINativeInterface table;
    static JNIEnv env;
    if (env == NULL) {
        void (*stopper)(void) = missing;
        for (size_t at = 0; at < sizeof table; at += sizeof stopper)
            memcpy((char *)&table + at, &stopper, sizeof stopper);
        table.GetArrayLength = get_array_length;
        table.NewByteArray = new_byte_array;
        table.GetObjectArrayElement = get_object_array_element;
        table.DeleteLocalRef = delete_local_ref;
        table.GetByteArrayRegion = get_bytes;
        table.SetByteArrayRegion = set_bytes;
        table.GetIntArrayRegion = get_ints;
        table.SetIntArrayRegion = set_ints;
        table.GetLongArrayRegion = get_longs;
        table.SetLongArrayRegion = set_longs;
        table.GetDoubleArrayRegion = get_doubles;
        table.SetDoubleArrayRegion = set_doubles;
        table.GetDirectBufferAddress = get_direct_buffer_address;
        table.GetDirectBufferCapacity = get_direct_buffer_capacity;
        env = &table;
    }
    return &env;
}

jbyteArray stub_bytes(const void *values, jsize n)
{
    return array(BYTES, values, n);
}

jintArray stub_ints(const jint *values, jsize n)
{
    return array(INTS, values, n);
}

jlongArray stub_longs(jsize n)
{
    return array(LONGS, NULL, n);
}

jdoubleArray stub_doubles(const jdouble *values, jsize n)
{
    return array(DOUBLES, values, n);
}

jobjectArray stub_objects(jobject const *values, jsize n)
{
    return array(OBJECTS, values, n);
}

jobject stub_buffer(void *address, size_t size)
{
    return made(BUFFER, size, address);
}

void *stub_elements(jobject reference)
{
    return ((object *)reference)->data;
}

jsize stub_length(jobject reference)
{
    return (jsize)((object *)reference)->size;
}

int stub_take_local_references(void)
{
    int n = local_references;
    local_references = 0;
    return n;
}
