/* A fake of NVIDIA's driver library over host memory: no GPU, nothing computed, nothing measured.

   As on a GPU, work on a stream is deferred: it happens when somebody waits for it, and until then the page-locked memory
   that a copy will write holds poison. Memory is never used again, so that what is freed twice or used after it was freed is
   found. Each function can be told to fail at its n-th call; functions that free do their work all the same, because CUDA
   returns errors of earlier work from them. What is private to the CUDA runtime library (cuGetExportTable) is left out. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef int CUdevice;
typedef void (*Work)(void *);
typedef struct Item Item;
typedef Item *Handle;

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, CAPTURE_INVALIDATED = 901 };
enum { DEVICE, PINNED, STREAM, EVENT, GRAPH, EXECUTABLE, CONTEXT, KINDS };
enum { COPY, RECORD, CALL };
enum { DOUBLE_FREE, WRONG_HANDLE, NO_CONTEXT, OTHER_DEVICE, STRAY_COPY, FAULTS };
enum { POISON = 0xA5, FREED = 0xDD };

typedef struct Op {
    int kind; char *target, *source; size_t size; Item *event; Work work; void *argument; double milliseconds; struct Op *next;
} Op;

struct Item {
    int kind, alive, device, capturing, broken, references; char *memory; size_t size; Op *first, *last;
    Item *stream; double time; int pending, recorded; Item *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Item *items, *contexts[8];
static __thread Item *current;
static int started, alive[KINDS], faults[FAULTS];
static double now_ms;
static size_t memory_left = (size_t)1 << 32;
static struct { char name[48]; int calls; } counts[96];
static char failing[48];
static int failing_call, failing_code, failed;

static int devices(void) { const char *text = getenv("FAKE_CUDA_DEVICES"); return text ? atoi(text) : 2; }

/* Counts a call; returns the error that it is to fail with. */
static int counted(const char *name) {
    int slot = 0;
    while (slot < 95 && counts[slot].name[0] && strcmp(counts[slot].name, name)) slot++;
    snprintf(counts[slot].name, sizeof counts[slot].name, "%s", name);
    counts[slot].calls++;
    if (failing_code && !strcmp(failing, name) && --failing_call < 0) {
        int code = failing_code;
        failing_code = 0, failed++;
        return code;
    }
    return OK;
}

#define ENTER(name, in_context) \
    pthread_mutex_lock(&lock); \
    CUresult given = counted(name); \
    CUresult code = given; \
    if (!code && !started) code = NOT_INITIALIZED; \
    if (!code && (in_context) && !current) code = INVALID_CONTEXT, faults[NO_CONTEXT]++;
#define LEAVE pthread_mutex_unlock(&lock); return code;

static Item *made(int kind) {
    Item *item = calloc(1, sizeof *item);
    item->kind = kind, item->alive = 1, item->device = current ? current->device : 0, item->next = items;
    items = item, alive[kind]++;
    return item;
}

static Item *known(const void *handle, int kind) {
    for (Item *item = items; item; item = item->next)
        if (item == handle && item->kind == kind) return item->alive ? item : NULL;
    return NULL;
}

static Item *holding(const char *address, size_t size) {
    for (Item *item = items; item; item = item->next)
        if (item->alive && item->memory && address >= item->memory && address + size <= item->memory + item->size) return item;
    return NULL;
}

static void ended(Item *item) {
    item->alive = 0, alive[item->kind]--;
    if (item->memory) memset(item->memory, FREED, item->size), memory_left += item->kind == DEVICE ? item->size : 0;
}

static int destroy(const void *handle, int kind) {
    for (Item *item = items; item; item = item->next) {
        if (item != handle || item->kind != kind) continue;
        if (!item->alive) { faults[DOUBLE_FREE]++; return INVALID_HANDLE; }
        ended(item);
        return OK;
    }
    faults[WRONG_HANDLE]++;
    return INVALID_HANDLE;
}

/* Does the work that waits on a stream. Work of the tests is Python's, which calls this library again. */
static void finish(Item *stream) {
    while (stream->first) {
        Op *op = stream->first;
        stream->first = op->next;
        if (!stream->first) stream->last = NULL;
        now_ms += op->milliseconds;
        if (op->kind == COPY) memcpy(op->target, op->source, op->size), now_ms += 0.001;
        if (op->kind == RECORD && op->event->alive) op->event->time = now_ms, op->event->pending--;
        if (op->kind == CALL) {
            pthread_mutex_unlock(&lock);
            op->work(op->argument);
            pthread_mutex_lock(&lock);
        }
        free(op);
    }
}

static void finish_all(void) {
    for (Item *item = items; item; item = item->next)
        if (item->kind == STREAM && item->alive && !item->capturing) finish(item);
}

static int read_later(const char *start, size_t size) {
    for (Item *item = items; item; item = item->next)
        for (Op *op = item->kind == STREAM ? item->first : NULL; op; op = op->next)
            if (op->kind == COPY && op->source < start + size && start < op->source + op->size) return 1;
    return 0;
}

static void append(Item *queue, Op model) {
    Op *op = malloc(sizeof *op);
    *op = model, op->next = NULL;
    if (queue->last) queue->last->next = op; else queue->first = op;
    queue->last = op;
    if (op->kind == RECORD && queue->kind == STREAM && !queue->capturing) op->event->pending++, op->event->recorded = 1;
    if (op->kind == COPY && queue->kind == STREAM && !queue->capturing) {
        Item *target = holding(op->target, op->size);
        if (target && target->kind == PINNED && !read_later(op->target, op->size)) memset(op->target, POISON, op->size);
    }
}

/* ---- the control of the tests */

void fake_fail(const char *name, int call, int code) {
    snprintf(failing, sizeof failing, "%s", name);
    failing_call = call, failing_code = code;
}
int fake_failed(void) { return failed; }
int fake_alive(int kind) { return alive[kind]; }
int fake_faults(int kind) { return faults[kind]; }
int fake_current(void) { return current ? current->device : -1; }
int fake_device_of(unsigned long long address) { Item *item = holding((char *)address, 1); return item ? item->device : -1; }
int fake_capturing(void *stream) { Item *item = known(stream, STREAM); return item && item->capturing; }
void fake_memory(size_t bytes) { memory_left = bytes; }
size_t fake_memory_left(void) { return memory_left; }
void fake_launch(void *stream, Work work, void *argument, double milliseconds) {
    pthread_mutex_lock(&lock);
    Item *item = known(stream, STREAM);
    if (item) append(item, (Op){.kind = CALL, .work = work, .argument = argument, .milliseconds = milliseconds});
    pthread_mutex_unlock(&lock);
}
void fake_finish(void *stream) {
    pthread_mutex_lock(&lock);
    if (known(stream, STREAM)) finish(stream);
    pthread_mutex_unlock(&lock);
}
void fake_break_capture(void *stream) { Item *item = known(stream, STREAM); if (item) item->broken = 1; }
int fake_waiting(void *stream) { int count = 0; for (Op *op = ((Item *)stream)->first; op; op = op->next) count++; return count; }
const char *fake_calls(void) {
    static char text[8192];
    size_t used = 0;
    text[0] = 0;
    for (int slot = 0; slot < 96 && counts[slot].name[0]; slot++)
        used += snprintf(text + used, sizeof text - used, "%s %d\n", counts[slot].name, counts[slot].calls);
    return text;
}
void fake_forget_calls(void) { memset(counts, 0, sizeof counts); }

/* ---- cuda.h */

CUresult cuInit(unsigned flags) {
    pthread_mutex_lock(&lock);
    CUresult code = counted("cuInit");
    if (!code && !devices()) code = NO_DEVICE;
    if (!code) started = 1;
    LEAVE
}
CUresult cuDriverGetVersion(int *version) {
    pthread_mutex_lock(&lock);
    CUresult code = counted("cuDriverGetVersion");
    const char *text = getenv("FAKE_CUDA_VERSION");
    *version = text ? atoi(text) : 13000;
    LEAVE
}
CUresult cuDeviceGetCount(int *count) { ENTER("cuDeviceGetCount", 0) if (!code) *count = devices(); LEAVE }
CUresult cuDeviceGet(CUdevice *device, int index) {
    ENTER("cuDeviceGet", 0)
    if (!code && (index < 0 || index >= devices())) code = INVALID_DEVICE;
    if (!code) *device = index;
    LEAVE
}
CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    ENTER("cuDeviceGetName", 0)
    if (!code) snprintf(name, size, "Fake GPU %d", device);
    LEAVE
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { ENTER("cuDeviceTotalMem", 0) *bytes = (size_t)1 << 34; LEAVE }
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    ENTER("cuDeviceGetAttribute", 0)
    /* CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, COMPUTE_CAPABILITY_MAJOR and MINOR of cuda.h */
    if (!code) *value = attribute == 38 ? 50 << 20 : attribute == 75 ? 8 : attribute == 76 ? 9 : 1;
    LEAVE
}
CUresult cuDeviceGetPCIBusId(char *text, int size, CUdevice device) {
    ENTER("cuDeviceGetPCIBusId", 0)
    if (!code) snprintf(text, size, "0000:%02X:00.0", 0x65 + device);
    LEAVE
}
CUresult cuDevicePrimaryCtxRetain(Handle *context, CUdevice device) {
    ENTER("cuDevicePrimaryCtxRetain", 0)
    if (!code && (device < 0 || device >= devices())) code = INVALID_DEVICE;
    if (!code) {
        if (!contexts[device]) contexts[device] = made(CONTEXT), contexts[device]->device = device;
        contexts[device]->references++;
        *context = contexts[device];
    }
    LEAVE
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { ENTER("cuDevicePrimaryCtxRelease", 0) LEAVE }
CUresult cuCtxSetCurrent(Handle context) { ENTER("cuCtxSetCurrent", 0) if (!code) current = context; LEAVE }
CUresult cuCtxGetCurrent(Handle *context) { ENTER("cuCtxGetCurrent", 0) *context = current; LEAVE }
CUresult cuCtxGetDevice(CUdevice *device) { ENTER("cuCtxGetDevice", 1) if (!code) *device = current->device; LEAVE }
CUresult cuCtxSynchronize(void) { ENTER("cuCtxSynchronize", 1) if (!code) finish_all(); LEAVE }
CUresult cuMemGetInfo_v2(size_t *left, size_t *total) {
    ENTER("cuMemGetInfo", 1)
    if (!code) *left = memory_left, *total = (size_t)1 << 34;
    LEAVE
}

static CUresult allocated(int kind, size_t size, char **address) {
    if (!size) return INVALID_VALUE;
    if (kind == DEVICE && size > memory_left) return OUT_OF_MEMORY;
    Item *item = made(kind);
    item->size = size, item->memory = aligned_alloc(256, (size + 255) / 256 * 256);
    memset(item->memory, 0xCD, size);
    if (kind == DEVICE) memory_left -= size;
    *address = item->memory;
    return OK;
}
static CUresult given_back(int kind, const char *address) {
    finish_all();
    for (Item *item = items; item; item = item->next) {
        if (item->memory != address || item->kind != kind) continue;
        if (!item->alive) { faults[DOUBLE_FREE]++; return INVALID_VALUE; }
        if (kind == DEVICE && current && current->device != item->device) faults[OTHER_DEVICE]++;
        ended(item);
        return OK;
    }
    faults[WRONG_HANDLE]++;
    return INVALID_VALUE;
}
CUresult cuMemAlloc_v2(unsigned long long *address, size_t size) {
    ENTER("cuMemAlloc", 1)
    if (!code) code = allocated(DEVICE, size, (char **)address);
    LEAVE
}
CUresult cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    ENTER("cuMemHostAlloc", 1)
    if (!code) code = allocated(PINNED, size, (char **)address);
    LEAVE
}
#define FREE(call) CUresult done = call; if (!given) code = code ? code : done; else code = given;
CUresult cuMemFree_v2(unsigned long long address) { ENTER("cuMemFree", 1) FREE(given_back(DEVICE, (char *)address)) LEAVE }
CUresult cuMemFreeHost(void *address) { ENTER("cuMemFreeHost", 1) FREE(given_back(PINNED, address)) LEAVE }

CUresult cuMemcpyAsync(unsigned long long target, unsigned long long source, size_t size, void *stream) {
    ENTER("cuMemcpyAsync", 1)
    Item *queue = known(stream, STREAM);
    if (!code && !queue) code = INVALID_HANDLE, faults[WRONG_HANDLE]++;
    if (!code && (!holding((char *)target, size) || !holding((char *)source, size))) code = INVALID_VALUE, faults[STRAY_COPY]++;
    if (!code) append(queue, (Op){.kind = COPY, .target = (char *)target, .source = (char *)source, .size = size});
    LEAVE
}

CUresult cuStreamCreate(Handle *stream, unsigned flags) { ENTER("cuStreamCreate", 1) if (!code) *stream = made(STREAM); LEAVE }
CUresult cuStreamDestroy_v2(Handle stream) {
    ENTER("cuStreamDestroy", 1)
    if (known(stream, STREAM)) finish(stream);
    FREE(destroy(stream, STREAM))
    LEAVE
}
CUresult cuStreamSynchronize(Handle stream) {
    ENTER("cuStreamSynchronize", 1)
    if (!code && !known(stream, STREAM)) code = INVALID_HANDLE, faults[WRONG_HANDLE]++;
    if (!code) finish(stream);
    LEAVE
}
CUresult cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) {
    ENTER("cuStreamWaitEvent", 1)
    if (!code && event->stream) finish(event->stream);
    LEAVE
}
CUresult cuStreamBeginCapture_v2(Handle stream, int mode) {
    ENTER("cuStreamBeginCapture", 1)
    if (!code && !known(stream, STREAM)) code = INVALID_HANDLE;
    if (!code) finish(stream), stream->capturing = 1, stream->broken = 0;
    LEAVE
}
CUresult cuStreamEndCapture(Handle stream, Handle *graph) {
    ENTER("cuStreamEndCapture", 1)
    if (known(stream, STREAM) && stream->capturing) {
        Op *first = stream->first, *last = stream->last;
        stream->first = stream->last = NULL, stream->capturing = 0;
        if (!code && stream->broken) code = CAPTURE_INVALIDATED;
        if (!code) *graph = made(GRAPH), (*graph)->first = first, (*graph)->last = last;
    } else if (!code) code = INVALID_VALUE;
    if (code) *graph = NULL;
    LEAVE
}
CUresult cuGraphInstantiateWithFlags(Handle *executable, Handle graph, unsigned long long flags) {
    ENTER("cuGraphInstantiate", 1)
    if (!code && !known(graph, GRAPH)) code = INVALID_HANDLE;
    if (!code) *executable = made(EXECUTABLE), (*executable)->first = graph->first, (*executable)->last = graph->last;
    LEAVE
}
CUresult cuGraphLaunch(Handle executable, Handle stream) {
    ENTER("cuGraphLaunch", 1)
    if (!code && (!known(executable, EXECUTABLE) || !known(stream, STREAM))) code = INVALID_HANDLE, faults[WRONG_HANDLE]++;
    for (Op *op = code ? NULL : executable->first; op; op = op->next) append(stream, *op);
    LEAVE
}
CUresult cuGraphDestroy(Handle graph) { ENTER("cuGraphDestroy", 1) FREE(destroy(graph, GRAPH)) LEAVE }
CUresult cuGraphExecDestroy(Handle executable) { ENTER("cuGraphExecDestroy", 1) FREE(destroy(executable, EXECUTABLE)) LEAVE }

CUresult cuEventCreate(Handle *event, unsigned flags) { ENTER("cuEventCreate", 1) if (!code) *event = made(EVENT); LEAVE }
CUresult cuEventDestroy_v2(Handle event) { ENTER("cuEventDestroy", 1) FREE(destroy(event, EVENT)) LEAVE }
CUresult cuEventRecord(Handle event, Handle stream) {
    ENTER("cuEventRecord", 1)
    if (!code && (!known(event, EVENT) || !known(stream, STREAM))) code = INVALID_HANDLE, faults[WRONG_HANDLE]++;
    if (!code) event->stream = stream, append(stream, (Op){.kind = RECORD, .event = event});
    LEAVE
}
CUresult cuEventSynchronize(Handle event) {
    ENTER("cuEventSynchronize", 1)
    if (!code && !known(event, EVENT)) code = INVALID_HANDLE, faults[WRONG_HANDLE]++;
    if (!code && event->recorded && known(event->stream, STREAM)) finish(event->stream);
    LEAVE
}
CUresult cuEventQuery(Handle event) {
    ENTER("cuEventQuery", 1)
    if (!code && !known(event, EVENT)) code = INVALID_HANDLE, faults[WRONG_HANDLE]++;
    if (!code && event->pending) code = NOT_READY;
    LEAVE
}
CUresult cuEventElapsedTime_v2(float *milliseconds, Handle start, Handle end) {
    ENTER("cuEventElapsedTime", 1)
    if (!code && (!known(start, EVENT) || !known(end, EVENT) || !start->recorded || !end->recorded)) code = INVALID_HANDLE;
    if (!code && (start->pending || end->pending)) code = NOT_READY;
    if (!code) *milliseconds = (float)(end->time - start->time);
    LEAVE
}

static const struct { int code; const char *name, *text; } errors[] = {
    {0, "CUDA_SUCCESS", "no error"}, {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}, {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}, {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}, {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
};
static CUresult described(int code, const char **text, int name) {
    for (size_t row = 0; row < sizeof errors / sizeof *errors; row++)
        if (errors[row].code == code) { *text = name ? errors[row].name : errors[row].text; return OK; }
    *text = NULL;
    return INVALID_VALUE;
}
CUresult cuGetErrorString(CUresult error, const char **text) { return described(error, text, 0); }
CUresult cuGetErrorName(CUresult error, const char **text) { return described(error, text, 1); }

CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
    Dl_info own;
    char newer[96];
    dladdr((void *)cuInit, &own);
    void *library = dlopen(own.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    snprintf(newer, sizeof newer, "%s_v2", symbol);
    *function = dlsym(library, newer);
    if (!*function && !strcmp(symbol, "cuGraphInstantiate")) *function = dlsym(library, "cuGraphInstantiateWithFlags");
    if (!*function) *function = dlsym(library, symbol);
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
