"""The part of Triton's ModelConfig that packages use, as a protobuf message that this process can parse text into.

Names, types and nesting are those of model_config.proto; the numbers are not, because text does not hold them.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

FIELD = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "string": FIELD.TYPE_STRING,
    "int32": FIELD.TYPE_INT32,
    "int64": FIELD.TYPE_INT64,
    "uint32": FIELD.TYPE_UINT32,
    "uint64": FIELD.TYPE_UINT64,
    "bool": FIELD.TYPE_BOOL,
}
ENUMS = {
    "DataType": "TYPE_INVALID TYPE_BOOL TYPE_UINT8 TYPE_UINT16 TYPE_UINT32 TYPE_UINT64 TYPE_INT8 TYPE_INT16 TYPE_INT32 TYPE_INT64 "
    "TYPE_FP16 TYPE_FP32 TYPE_FP64 TYPE_STRING TYPE_BF16",
    "Kind": "KIND_AUTO KIND_GPU KIND_CPU KIND_MODEL",
}
#: message → its fields; a star for repeated, and a map is a repeated message of key and value
MESSAGES = {
    "Reshape": "int64* shape",
    "Input": "string name, DataType data_type, int64* dims, Reshape reshape",
    "Output": "string name, DataType data_type, int64* dims, Reshape reshape, string label_filename",
    "Group": "string name, Kind kind, int32 count, int32* gpus, string* profile",
    "DynamicBatching": "int32* preferred_batch_size, uint64 max_queue_delay_microseconds",
    "StringEntry": "string key, string value",
    "Accelerator": "string name, StringEntry* parameters",
    "Accelerators": "Accelerator* gpu_execution_accelerator, Accelerator* cpu_execution_accelerator",
    "Optimization": "Accelerators execution_accelerators",
    "Parameter": "string string_value",
    "ParameterEntry": "string key, Parameter value",
    "WarmupInput": "DataType data_type, int64* dims, bool zero_data, bool random_data",
    "WarmupEntry": "string key, WarmupInput value",
    "Warmup": "string name, uint32 batch_size, WarmupEntry* inputs, uint32 count",
    "ModelConfig": "string name, string platform, string backend, string default_model_filename, int32 max_batch_size, Input* input, "
    "Output* output, DynamicBatching dynamic_batching, Group* instance_group, Optimization optimization, ParameterEntry* parameters, "
    "Warmup* model_warmup",
}


def message_class():
    file = descriptor_pb2.FileDescriptorProto(name="subset.proto", package="subset", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values.split()):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, text in enumerate(fields.split(", "), 1):
            kind, field_name = text.split()
            field = message.field.add(name=field_name, number=number)
            field.label = FIELD.LABEL_REPEATED if kind.endswith("*") else FIELD.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in SCALARS:
                field.type = SCALARS[kind]
            else:
                field.type = FIELD.TYPE_ENUM if kind in ENUMS else FIELD.TYPE_MESSAGE
                field.type_name = f".subset.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("subset.ModelConfig"))


def parse(text):
    """Return the ModelConfig in `text`. Raises google.protobuf.text_format.ParseError for a field or value that there is not."""
    return text_format.Parse(text, message_class()())
