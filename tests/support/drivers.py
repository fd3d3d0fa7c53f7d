"""A test double of NVIDIA's driver library: what libcuda.so.1 answers about GPUs that are not there."""


class Driver:
    """gpus: (name, compute capability, bytes). cuda: as cuDriverGetVersion tells it. error: what cuInit returns."""

    def __init__(self, name="", major=0, minor=0, error=0, *, cuda=13000, gpus=None):
        self.error, self.cuda = error, cuda
        self.gpus = [(name, (major, minor), 24 << 30)] if gpus is None else gpus

    def cuInit(self, flags):
        return self.error

    def cuDriverGetVersion(self, version):
        version._obj.value = self.cuda
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, device, index):
        if index >= len(self.gpus):
            return 101
        # A handle is not an index.
        device._obj.value = 1000 + index
        return 0

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = self.gpus[device.value - 1000][0].encode()[: size - 1]
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.gpus[device.value - 1000][1][{75: 0, 76: 1}[attribute]]
        return 0

    def cuDeviceTotalMem_v2(self, size, device):
        size._obj.value = self.gpus[device.value - 1000][2]
        return 0
