// Arguments from JavaScript -> plain structs, checked for their types; a part of addon.cc.
#pragma once

#include <napi.h>

#include <span>
#include <string>
#include <vector>

#include "arena.h"
#include "control_page.h"
#include "error.h"
#include "layer_program.h"
#include "lock.h"
#include "text.h"

namespace layercast {

inline std::string text(const Napi::Value& value, const std::string& name) {
  if (!value.IsString()) throw_invalid(name + " must be a string");
  return value.As<Napi::String>().Utf8Value();
}

inline uint64_t count(const Napi::Value& value, const std::string& name) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (!(number >= 0 && number <= 9007199254740991.0) || number != static_cast<double>(static_cast<uint64_t>(number))) {
    throw_invalid(name + " must be a whole number from 0 to 2^53 - 1");
  }
  return static_cast<uint64_t>(number);
}

inline bool flag(const Napi::Value& value, const std::string& name) {
  if (!value.IsBoolean()) throw_invalid(name + " must be a boolean");
  return value.As<Napi::Boolean>().Value();
}

inline Napi::Object object(const Napi::Value& value, const std::string& name) {
  if (!value.IsObject()) throw_invalid(name + " must be an object");
  return value.As<Napi::Object>();
}

template <class Element>
std::span<const Element> elements(const Napi::Value& value, const std::string& name, napi_typedarray_type type) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) {
    throw_invalid(name + (type == napi_uint8_array ? " must be a Uint8Array" : " must be a Float64Array"));
  }
  const auto array = value.As<Napi::TypedArrayOf<Element>>();
  return {array.Data(), array.ElementLength()};
}

inline std::vector<uint8_t> bytes(const Napi::Value& value, const std::string& name) {
  const auto given = elements<uint8_t>(value, name, napi_uint8_array);
  return {given.begin(), given.end()};
}

inline std::span<const double> numbers(const Napi::Value& value, const std::string& name) {
  return elements<double>(value, name, napi_float64_array);
}

template <class Item, class Convert>
std::vector<Item> list(const Napi::Value& value, const std::string& name, const Convert& convert) {
  if (!value.IsArray()) throw_invalid(name + " must be an array");
  const auto array = value.As<Napi::Array>();
  std::vector<Item> items;
  for (uint32_t i = 0; i < array.Length(); i++) {
    const std::string item = name + "[" + std::to_string(i) + "]";
    items.push_back(convert(object(array[i], item), item));
  }
  return items;
}

inline Half half(const Napi::Value& value) {
  const std::string name = text(value, "half");
  if (name == "live") return Half::live;
  if (name == "staging") return Half::staging;
  throw_invalid("half must be live or staging, not " + name);
}

inline Where where(const Napi::Value& value) {
  const std::string name = text(value, "where");
  if (name == "device") return Where::device;
  if (name == "host") return Where::host;
  throw_invalid("where must be device or host, not " + name);
}

inline LockKind lock_kind(const Napi::Value& value) {
  const std::string name = text(value, "kind");
  if (name == "shared") return LockKind::shared;
  if (name == "exclusive") return LockKind::exclusive;
  throw_invalid("kind must be shared or exclusive, not " + name);
}

inline DeviceKind device_kind(const Napi::Value& value, const std::string& name) {
  const std::string kind = text(value, name);
  if (kind == "cpu") return DeviceKind::cpu;
  if (kind == "cuda") return DeviceKind::cuda;
  throw_invalid(name + " must be cpu or cuda, not " + kind);
}

template <size_t kSize>
Bytes<kSize> hex(const Napi::Value& value, const std::string& name) {
  return bytes_from_hex<kSize>(text(value, name), name);
}

/// kIpcHandleBytes, or none where the text is empty.
inline std::vector<uint8_t> ipc_handle(const Napi::Value& value, const std::string& name) {
  if (text(value, name).empty()) return {};
  const auto bytes = hex<kIpcHandleBytes>(value, name);
  return {bytes.begin(), bytes.end()};
}

inline std::vector<Span> spans(const Napi::Value& value) {
  return list<Span>(value, "spans", [](const Napi::Object& span, const std::string& name) {
    return Span{count(span["offset"], name + ".offset"), count(span["bytes"], name + ".bytes")};
  });
}

inline ProgramFile program_file(const Napi::Object& file, const std::string& name) {
  return {text(file["path"], name + ".path"), count(file["sizeBytes"], name + ".sizeBytes"),
          number_from_text<int64_t>(text(file["mtimeNs"], name + ".mtimeNs"), name + ".mtimeNs"),
          number_from_text<uint64_t>(text(file["inode"], name + ".inode"), name + ".inode")};
}

inline LayerProgram layer_program(const Napi::Value& value) {
  const Napi::Object program = object(value, "program");
  return {list<ProgramFile>(program["files"], "program.files", program_file),
          ops_from_numbers(numbers(program["ops"], "program.ops")),
          slices_from_numbers(numbers(program["slices"], "program.slices")),
          flag(program["allowNonFinite"], "program.allowNonFinite"),
          scales_from_numbers(numbers(program["scales"], "program.scales")),
          agreements_from_numbers(numbers(program["agreements"], "program.agreements")),
          derived_from_numbers(numbers(program["derived"], "program.derived"))};
}

inline ControlUpdate control_update(const Napi::Value& value) {
  const Napi::Object update = object(value, "update");
  return {
      .epoch = count(update["epoch"], "update.epoch"),
      .arena_id = hex<16>(update["arenaId"], "update.arenaId"),
      .layout_digest = hex<32>(update["layoutDigest"], "update.layoutDigest"),
      .reload = text(update["reload"], "update.reload"),
      .content = text(update["content"], "update.content"),
      .weight_version = text(update["weightVersion"], "update.weightVersion"),
      .digest = number_from_text<uint64_t>(text(update["digest"], "update.digest"), "update.digest", 16),
      .device_kind = device_kind(update["deviceKind"], "update.deviceKind"),
      .device_uuid = hex<16>(update["deviceUuid"], "update.deviceUuid"),
      .ipc_handle = hex<kIpcHandleBytes>(update["ipcHandle"], "update.ipcHandle"),
      .data_offset = count(update["dataOffset"], "update.dataOffset"),
      .data_bytes = count(update["dataBytes"], "update.dataBytes"),
  };
}

}  // namespace layercast
