/* A fake of NVIDIA's management library: one GPU whose readings are fixed. FAKE_NVML_UNSUPPORTED names the functions, separated
   by commas, that answer NVML_ERROR_NOT_SUPPORTED; "nvmlInit" may be among them. */

#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
static int started, calls;

static int answer(const char *name) {
    const char *all = getenv("FAKE_NVML_UNSUPPORTED");
    calls++;
    for (const char *at = all; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : "")
        if (!strncmp(at, name, strlen(name)) && (at[strlen(name)] == 0 || at[strlen(name)] == ',')) return NOT_SUPPORTED;
    return started ? SUCCESS : UNINITIALIZED;
}

int fake_calls(void) { return calls; }
int nvmlInitWithFlags(unsigned flags) { started = 1; int code = answer("nvmlInit"); started = code == SUCCESS; return code; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { started = 0; return SUCCESS; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **device) {
    int code = answer("nvmlDeviceGetHandleByPciBusId");
    if (code == SUCCESS && !strstr(address, ":65:00.0")) code = NOT_FOUND;
    *device = &started;
    return code;
}
int nvmlDeviceGetClockInfo(void *device, int type, unsigned *clock) {
    *clock = type == 1 ? 1980 : 2619; /* NVML_CLOCK_SM is 1, NVML_CLOCK_MEM is 2 */
    return answer(type == 1 ? "nvmlDeviceGetClockInfo.SM" : "nvmlDeviceGetClockInfo.MEM");
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) { *milliwatts = 312500; return answer("nvmlDeviceGetPowerUsage"); }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) { *celsius = 41; return answer("nvmlDeviceGetTemperature"); }
struct temperature { unsigned version; int sensor, celsius; };
int nvmlDeviceGetTemperatureV(void *device, struct temperature *found) { found->celsius = 41; return answer("nvmlDeviceGetTemperature"); }
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *bits) {
    *bits = 0x4 | 0x400;
    return answer("nvmlDeviceGetCurrentClocksEventReasons");
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *bits) {
    return nvmlDeviceGetCurrentClocksEventReasons(device, bits);
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    static unsigned long long total = 1000000;
    *millijoules = total += 250;
    return answer("nvmlDeviceGetTotalEnergyConsumption");
}
const char *nvmlErrorString(int code) {
    return code == NOT_SUPPORTED ? "Not Supported" : code == NOT_FOUND ? "Not Found" : code == UNINITIALIZED ? "Uninitialized" : "Success";
}
