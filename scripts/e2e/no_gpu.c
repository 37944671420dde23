/* Stands in for libollama-ggml-sycl.so, the Intel GPU backend that this build of
 * Ollama is linked to. It registers a backend without a single device, so ggml
 * goes on with the CPU. The layout is ggml's ggml_backend_reg, API version 1. */
#include <stddef.h>

struct registry {
    int api_version;
    const char *(*name)(struct registry *);
    size_t (*device_count)(struct registry *);
    void *(*device)(struct registry *, size_t index);
    void *(*procedure)(struct registry *, const char *name);
    void *context;
};

static const char *name(struct registry *self) { (void)self; return "SYCL"; }
static size_t device_count(struct registry *self) { (void)self; return 0; }
static void *device(struct registry *self, size_t index) { (void)self; (void)index; return NULL; }
static void *procedure(struct registry *self, const char *wanted) { (void)self; (void)wanted; return NULL; }

static struct registry no_devices = {1, name, device_count, device, procedure, NULL};

struct registry *ggml_backend_sycl_reg(void) { return &no_devices; }

/* The linker asks for these two; without a device nobody calls them. */
void *ggml_backend_sycl_init(int index) { (void)index; return NULL; }
void ggml_backend_sycl_get_device_name(int index, char *text, size_t size) {
    (void)index;
    if (size > 0) text[0] = '\0';
}
