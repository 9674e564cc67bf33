// The bridge to JavaScript; only this file, with its addon_arguments.h, knows of Node: arguments -> plain structs, work
// -> the pool, results -> plain objects. Functions stand in the order of NativeCore in native.ts.
#include <napi.h>

#include <functional>
#include <optional>
#include <tuple>
#include <typeinfo>
#include <utility>

#include "addon_arguments.h"
#include "arena.h"
#include "buffers.h"
#include "control_page.h"
#include "cuda_library.h"
#include "device.h"
#include "error.h"
#include "exchange.h"
#include "export.h"
#include "lock.h"
#include "near_cpus.h"
#include "run_layer.h"
#include "text.h"
#include "timing.h"

namespace layercast {
namespace {

constexpr int kAbi = 7;

// ---- Errors

using Numbers = std::vector<std::pair<std::string, double>>;

Napi::Object js_numbers(Napi::Env env, const Numbers& numbers) {
  Napi::Object made = Napi::Object::New(env);
  for (const auto& [name, value] : numbers) made.Set(name, value);
  return made;
}

Napi::Error js_error(Napi::Env env, const NativeError& error) {
  Napi::Error made = Napi::Error::New(env, error.what());
  made.Set("code", Napi::String::New(env, std::string(error.code_name())));
  made.Set("details", js_numbers(env, error.details));
  return made;
}

Napi::Error js_error(Napi::Env env, std::exception_ptr failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const Napi::Error& error) {
    return error;
  } catch (const NativeError& error) {
    return js_error(env, error);
  } catch (const std::bad_alloc&) {
    return js_error(env, NativeError(ErrorCode::out_of_memory, "there is no memory", {{"bytes", 0.0}}));
  } catch (const std::exception& error) {
    return js_error(env, NativeError(ErrorCode::io, error.what(), {{"errno", 0.0}}));
  }
}

/// A function as JavaScript calls it: what it throws becomes a JS error.
template <auto kFunction>
auto throwing(const Napi::CallbackInfo& info) {
  try {
    return kFunction(info);
  } catch (...) {
    throw js_error(info.Env(), std::current_exception());
  }
}

/// The same for one that promises: what it throws before its work is queued rejects the promise too.
template <auto kFunction>
Napi::Value rejecting(const Napi::CallbackInfo& info) {
  try {
    return kFunction(info);
  } catch (...) {
    const auto deferred = Napi::Promise::Deferred::New(info.Env());
    deferred.Reject(js_error(info.Env(), std::current_exception()).Value());
    return deferred.Promise();
  }
}

// ---- Work off the JS thread

using ToJs = std::function<Napi::Value(Napi::Env)>;

struct Completion {
  Napi::Promise::Deferred deferred;
  ToJs to_js;
  std::exception_ptr failure;
};

void settle(Napi::Env env, Napi::Function, std::nullptr_t*, Completion* raw);
using Completions = Napi::TypedThreadSafeFunction<std::nullptr_t, Completion, settle>;

/// What one environment (a Node process, or one of its worker threads) owns.
struct Addon {
  explicit Addon(Napi::Env env)
      : pool(std::make_unique<ThreadPool>(default_thread_count())),
        shutdown(std::make_shared<CancelToken>()),
        completions(Completions::New(env, "layercast", 0, 1)) {
    completions.Unref(env);
  }

  std::unique_ptr<ThreadPool> pool;
  std::shared_ptr<CancelToken> shutdown;
  Completions completions;
  uint64_t pending = 0;  // promises; while there are any, the process stays
};

Addon& addon_of(Napi::Env env) { return *env.GetInstanceData<Addon>(); }

void settle(Napi::Env env, Napi::Function, std::nullptr_t*, Completion* raw) {
  const std::unique_ptr<Completion> completion(raw);
  if (env == nullptr) return;  // the environment is going: nobody waits
  Addon& addon = addon_of(env);
  if (--addon.pending == 0) addon.completions.Unref(env);
  try {
    if (completion->failure) std::rethrow_exception(completion->failure);
    completion->deferred.Resolve(completion->to_js(env));
  } catch (...) {
    completion->deferred.Reject(js_error(env, std::current_exception()).Value());
  }
}

/// Runs `work` on the pool; the promise is settled after it has let go of the arena.
Napi::Value start(Napi::Env env, std::shared_ptr<ArenaUse> use, std::function<ToJs(ThreadPool&)> work) {
  Addon& addon = addon_of(env);
  const auto deferred = Napi::Promise::Deferred::New(env);
  if (addon.pending++ == 0) addon.completions.Ref(env);
  addon.pool->post([&addon, deferred, use = std::move(use), work = std::move(work)]() mutable {
    auto completion = std::make_unique<Completion>(Completion{deferred, nullptr, nullptr});
    try {
      completion->to_js = work(*addon.pool);
    } catch (...) {
      completion->failure = std::current_exception();
    }
    work = nullptr;
    use = nullptr;
    // From then on it is settle()'s.
    if (addon.completions.BlockingCall(completion.get()) == napi_ok) std::ignore = completion.release();
  });
  return deferred.Promise();
}

// ---- Handles: what JavaScript holds of ours

struct Handle {
  const std::type_info& type;
  std::shared_ptr<void> object;  // null: closed
};

template <class T>
Napi::Value to_handle(Napi::Env env, std::shared_ptr<T> object) {
  const auto free = [](Napi::Env, Handle* handle) { delete handle; };
  return Napi::External<Handle>::New(env, new Handle{typeid(T), std::move(object)}, free);
}

template <class T>
Handle& open_handle(const Napi::Value& value, const char* name) {
  if (!value.IsExternal()) throw_invalid(std::string(name) + " is not a handle");
  Handle& handle = *value.As<Napi::External<Handle>>().Data();
  if (handle.type != typeid(T)) throw_invalid(std::string(name) + " is a handle of another kind");
  if (handle.object == nullptr) throw_invalid(std::string(name) + " is closed");
  return handle;
}

template <class T>
std::shared_ptr<T> from_handle(const Napi::Value& value, const char* name) {
  return std::static_pointer_cast<T>(open_handle<T>(value, name).object);
}

std::shared_ptr<Arena> arena_argument(const Napi::Value& value) { return from_handle<Arena>(value, "arena"); }
std::shared_ptr<Control> control_argument(const Napi::Value& value) { return from_handle<Control>(value, "control"); }
std::shared_ptr<CancelToken> cancel_argument(const Napi::Value& value) {
  return from_handle<CancelToken>(value, "cancel");
}

std::shared_ptr<OpenDevice> device_argument(const Napi::Value& value) {
  return from_handle<OpenDevice>(value, "device");
}

std::shared_ptr<Buffers> buffers_argument(const Napi::Value& value) { return from_handle<Buffers>(value, "buffers"); }

// ---- The functions

Napi::Value cuda_unavailable(const Napi::CallbackInfo& info) {
  const CudaLibrary& library = cuda_library();
  if (library.backend != nullptr) return info.Env().Null();
  return Napi::String::New(info.Env(), library.unavailable);
}

Napi::Value cuda_library_path(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), cuda_library().path);
}

Napi::Value acquire_lock_js(const Napi::CallbackInfo& info) {
  const std::optional<std::string> holder = acquire_lock(text(info[0], "path"), text(info[1], "holder"));
  if (!holder.has_value()) return info.Env().Null();
  return Napi::String::New(info.Env(), *holder);
}

void share_lock_js(const Napi::CallbackInfo& info) {
  constexpr uint64_t kLongestMs = 60'000;  // it waits on the thread that called
  const uint64_t timeout_ms = count(info[1], "timeoutMs");
  if (timeout_ms > kLongestMs) throw_invalid("timeoutMs must be at most " + std::to_string(kLongestMs));
  share_lock(text(info[0], "path"), timeout_ms);
}

std::shared_ptr<FileLock> lock_argument(const Napi::Value& value) { return from_handle<FileLock>(value, "lock"); }

Napi::Value open_lock(const Napi::CallbackInfo& info) {
  return to_handle(info.Env(), std::make_shared<FileLock>(text(info[0], "path")));
}

Napi::Value try_lock(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), lock_argument(info[0])->try_take(lock_kind(info[1])));
}

void unlock(const Napi::CallbackInfo& info) {
  lock_argument(info[0])->give_back();
}

void close_lock(const Napi::CallbackInfo& info) {
  open_handle<FileLock>(info[0], "lock").object = nullptr;
}

Napi::Value open_device_js(const Napi::CallbackInfo& info) {
  ThreadPool& pool = *addon_of(info.Env()).pool;
  auto device = open_device(text(info[0], "name"), pool.lanes());
  pool.stay_on(cpus_near(device->facts().pci_address));
  return to_handle(info.Env(), std::move(device));
}

Napi::Value describe_device(const Napi::CallbackInfo& info) {
  const std::shared_ptr<OpenDevice> device = device_argument(info[0]);
  const DeviceFacts facts = device->facts();
  Napi::Object made = js_numbers(info.Env(), {{"totalBytes", static_cast<double>(facts.total_bytes)},
                                              {"freeBytes", static_cast<double>(facts.free_bytes)},
                                              {"pinnedBytes", static_cast<double>(facts.pinned_bytes)}});
  made.Set("kind", device->backend().kind);
  made.Set("name", std::string(facts.name, strnlen(facts.name, sizeof facts.name)));
  made.Set("uuid", hex_of(facts.uuid));
  return made;
}

Napi::Value pin_sources(const Napi::CallbackInfo& info) {
  return start(info.Env(), nullptr,
               [device = device_argument(info[0]), files = list<ProgramFile>(info[1], "files", program_file),
                limit_bytes = count(info[2], "limitBytes")](ThreadPool&) -> ToJs {
                 const auto pinned = static_cast<double>(device->pinned_sources().keep(files, limit_bytes));
                 return [pinned](Napi::Env env) { return js_numbers(env, {{"pinnedBytes", pinned}}); };
               });
}

Napi::Value open_control(const Napi::CallbackInfo& info) {
  return to_handle(info.Env(), std::make_shared<Control>(text(info[0], "path")));
}

Napi::Value read_control(const Napi::CallbackInfo& info) {
  const ControlPage page = control_argument(info[0])->read();
  constexpr const char* kStates[] = {"empty", "live", "swapping", "torn"};
  Napi::Object made = Napi::Object::New(info.Env());
  made.Set("abiVersion", page.abi_version);
  made.Set("state", kStates[static_cast<uint32_t>(page.state) % 4]);
  made.Set("generation", static_cast<double>(page.generation));
  made.Set("epoch", static_cast<double>(page.epoch));
  made.Set("arenaId", hex_of(page.arena_id));
  made.Set("layoutDigest", hex_of(page.layout_digest));
  made.Set("reload", text_of(page.reload));
  made.Set("content", text_of(page.content));
  made.Set("weightVersion", text_of(page.weight_version));
  made.Set("digest", hex_of_number(page.digest));
  made.Set("deviceKind", page.device_kind == DeviceKind::cuda ? "cuda" : "cpu");
  made.Set("deviceUuid", hex_of(page.device_uuid));
  made.Set("ipcHandle", hex_of(page.ipc_handle));
  made.Set("dataOffset", static_cast<double>(page.data_offset));
  made.Set("dataBytes", static_cast<double>(page.data_bytes));
  return made;
}

void begin_swap(const Napi::CallbackInfo& info) {
  control_argument(info[0])->begin_swap(count(info[1], "epoch"), text(info[2], "reload"));
}

void end_swap(const Napi::CallbackInfo& info) {
  control_argument(info[0])->end_swap(control_update(info[1]));
}

void close_control(const Napi::CallbackInfo& info) {
  control_argument(info[0])->close();
}

Napi::Value open_arena(const Napi::CallbackInfo& info) {
  const Napi::Object options = object(info[0], "options");
  const std::string mode = text(options["mode"], "options.mode");
  if (mode != "create" && mode != "attach") throw_invalid("options.mode must be create or attach, not " + mode);
  const std::vector<uint8_t> header = bytes(options["headerBytes"], "options.headerBytes");
  const std::vector<uint8_t> handle = ipc_handle(options["ipcHandle"], "options.ipcHandle");
  const ArenaOptions given = {text(options["path"], "options.path"),
                              mode == "create" ? OpenMode::create : OpenMode::attach, header,
                              count(options["dataBytes"], "options.dataBytes"), handle};
  return to_handle(info.Env(), std::make_shared<Arena>(device_argument(options["device"]), given));
}

void close_arena(const Napi::CallbackInfo& info) {
  arena_argument(info[0])->close();
}

void open_staging(const Napi::CallbackInfo& info) {
  arena_argument(info[0])->open_staging(*addon_of(info.Env()).pool, where(info[1]), flag(info[2], "poison"));
}

void close_staging(const Napi::CallbackInfo& info) {
  arena_argument(info[0])->close_staging();
}

Napi::Value open_buffers(const Napi::CallbackInfo& info) {
  return to_handle(info.Env(), std::make_shared<Buffers>(count(info[0], "bytes")));
}

Napi::Value fill_buffers_js(const Napi::CallbackInfo& info) {
  return start(info.Env(), nullptr,
               [buffers = buffers_argument(info[0]), files = list<ProgramFile>(info[1], "files", program_file),
                copies = copies_from_numbers(numbers(info[2], "copies")),
                cancel = cancel_argument(info[3])](ThreadPool& pool) -> ToJs {
                 const FillReport report = fill_buffers(pool, *buffers, files, copies, *cancel);
                 return [report](Napi::Env env) {
                   return js_numbers(env, {{"bytesRead", static_cast<double>(report.bytes_read)},
                                           {"readMs", ms_from_ns(report.read_ns)}});
                 };
               });
}

Napi::Object js_program_file(Napi::Env env, const ProgramFile& file) {
  Napi::Object made = js_numbers(env, {{"sizeBytes", static_cast<double>(file.size_bytes)}});
  made.Set("path", file.path);
  made.Set("mtimeNs", std::to_string(file.mtime_ns));
  made.Set("inode", std::to_string(file.inode));
  return made;
}

Napi::Value describe_buffers(const Napi::CallbackInfo& info) {
  const std::shared_ptr<Buffers> buffers = buffers_argument(info[0]);
  Napi::Object made = js_numbers(info.Env(), {{"heldBytes", static_cast<double>(buffers->held_bytes())}});
  made.Set("file", js_program_file(info.Env(), buffers->file()));
  return made;
}

Napi::Value free_buffers(const Napi::CallbackInfo& info) {
  return start(info.Env(), nullptr,
               [buffers = buffers_argument(info[0]), spans = spans(info[1])](ThreadPool&) -> ToJs {
                 buffers->free(spans);
                 return [](Napi::Env env) { return env.Undefined(); };
               });
}

/// Many pages are given back slowly, so a thread does that unless work in flight still holds them.
void close_buffers(const Napi::CallbackInfo& info) {
  Handle& handle = open_handle<Buffers>(info[0], "buffers");
  addon_of(info.Env()).pool->post([last = std::exchange(handle.object, nullptr)] {});
}

Napi::Value create_cancel(const Napi::CallbackInfo& info) {
  return to_handle(info.Env(), std::make_shared<CancelToken>(addon_of(info.Env()).shutdown));
}

void cancel(const Napi::CallbackInfo& info) {
  cancel_argument(info[0])->cancel();
}

Napi::Value layer_report(Napi::Env env, const LayerReport& report) {
  Napi::Object made = js_numbers(env, {{"bytesRead", static_cast<double>(report.bytes_read)},
                                       {"bytesWritten", static_cast<double>(report.bytes_written)},
                                       {"readMs", ms_from_ns(report.read_ns)},
                                       {"placeMs", ms_from_ns(report.place_ns)},
                                       {"quantizeMs", ms_from_ns(report.quantize_ns)},
                                       {"writeMs", ms_from_ns(report.write_ns)}});
  made.Set("digest", hex_of_number(report.digest));
  return made;
}

Napi::Value run_layer_js(const Napi::CallbackInfo& info) {
  const auto use = std::make_shared<ArenaUse>(arena_argument(info[0]));
  const auto program = std::make_shared<const LayerProgram>(layer_program(info[2]));
  return start(info.Env(), use,
               [&arena = use->arena(), half = half(info[1]), program,
                cancel = cancel_argument(info[3])](ThreadPool& pool) -> ToJs {
                 const LayerReport report = run_layer(pool, arena, half, *program, *cancel);
                 return [report](Napi::Env env) { return layer_report(env, report); };
               });
}

Napi::Value exchange_js(const Napi::CallbackInfo& info) {
  const auto use = std::make_shared<ArenaUse>(arena_argument(info[0]));
  return start(info.Env(), use,
               [&arena = use->arena(), spans = spans(info[1]),
                cancel = cancel_argument(info[2])](ThreadPool& pool) -> ToJs {
                 const SwapReport report = exchange(pool, arena, spans, *cancel);
                 return [report](Napi::Env env) {
                   return js_numbers(
                       env, {{"bytes", static_cast<double>(report.bytes)}, {"swapMs", ms_from_ns(report.swap_ns)}});
                 };
               });
}

Napi::Value digest_js(const Napi::CallbackInfo& info) {
  const auto use = std::make_shared<ArenaUse>(arena_argument(info[0]));
  return start(info.Env(), use,
               [&arena = use->arena(), half = half(info[1]), spans = spans(info[2]),
                cancel = cancel_argument(info[3])](ThreadPool& pool) -> ToJs {
                 const std::string digest = hex_of_number(digest_spans(pool, arena, half, spans, *cancel));
                 return [digest](Napi::Env env) { return Napi::String::New(env, digest); };
               });
}

Napi::Value export_live_js(const Napi::CallbackInfo& info) {
  const auto use = std::make_shared<ArenaUse>(arena_argument(info[0]));
  return start(info.Env(), use,
               [&arena = use->arena(), path = text(info[1], "path"), header = bytes(info[2], "headerBytes"),
                spans = spans(info[3]), cancel = cancel_argument(info[4])](ThreadPool& pool) -> ToJs {
                 const auto written = static_cast<double>(export_live(pool, arena, path, header, spans, *cancel));
                 return [written](Napi::Env env) { return js_numbers(env, {{"bytes", written}}); };
               });
}

/// Ends the threads before the environment goes; it runs before the hook of `completions`, which was added earlier.
void shut_down(Addon* addon) {
  addon->shutdown->cancel();
  addon->pool = nullptr;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  Addon* addon = nullptr;
  try {
    addon = new Addon(env);
  } catch (...) {
    throw js_error(env, std::current_exception());
  }
  env.SetInstanceData(addon);
  env.AddCleanupHook(shut_down, addon);

  exports.Set("abi", kAbi);
  // Getters, as the library is only opened when somebody asks.
  exports.DefineProperties(
      {Napi::PropertyDescriptor::Accessor<throwing<cuda_unavailable>>("cudaUnavailable", napi_enumerable),
       Napi::PropertyDescriptor::Accessor<throwing<cuda_library_path>>("cudaLibraryPath", napi_enumerable)});
  exports.Set("threads", addon->pool->threads());
  exports.Set("holderPath", (own_directory() / "layercast-holder").string());
  exports.Set("acquireLock", Napi::Function::New(env, throwing<acquire_lock_js>));
  exports.Set("shareLock", Napi::Function::New(env, throwing<share_lock_js>));
  exports.Set("openLock", Napi::Function::New(env, throwing<open_lock>));
  exports.Set("tryLock", Napi::Function::New(env, throwing<try_lock>));
  exports.Set("unlock", Napi::Function::New(env, throwing<unlock>));
  exports.Set("closeLock", Napi::Function::New(env, throwing<close_lock>));
  exports.Set("openDevice", Napi::Function::New(env, throwing<open_device_js>));
  exports.Set("describeDevice", Napi::Function::New(env, throwing<describe_device>));
  exports.Set("pinSources", Napi::Function::New(env, rejecting<pin_sources>));
  exports.Set("openControl", Napi::Function::New(env, throwing<open_control>));
  exports.Set("readControl", Napi::Function::New(env, throwing<read_control>));
  exports.Set("beginSwap", Napi::Function::New(env, throwing<begin_swap>));
  exports.Set("endSwap", Napi::Function::New(env, throwing<end_swap>));
  exports.Set("closeControl", Napi::Function::New(env, throwing<close_control>));
  exports.Set("openArena", Napi::Function::New(env, throwing<open_arena>));
  exports.Set("closeArena", Napi::Function::New(env, throwing<close_arena>));
  exports.Set("openStaging", Napi::Function::New(env, throwing<open_staging>));
  exports.Set("closeStaging", Napi::Function::New(env, throwing<close_staging>));
  exports.Set("openBuffers", Napi::Function::New(env, throwing<open_buffers>));
  exports.Set("fillBuffers", Napi::Function::New(env, rejecting<fill_buffers_js>));
  exports.Set("describeBuffers", Napi::Function::New(env, throwing<describe_buffers>));
  exports.Set("freeBuffers", Napi::Function::New(env, rejecting<free_buffers>));
  exports.Set("closeBuffers", Napi::Function::New(env, throwing<close_buffers>));
  exports.Set("createCancel", Napi::Function::New(env, throwing<create_cancel>));
  exports.Set("cancel", Napi::Function::New(env, throwing<cancel>));
  exports.Set("runLayer", Napi::Function::New(env, rejecting<run_layer_js>));
  exports.Set("exchange", Napi::Function::New(env, rejecting<exchange_js>));
  exports.Set("digest", Napi::Function::New(env, rejecting<digest_js>));
  exports.Set("exportLive", Napi::Function::New(env, rejecting<export_live_js>));
  return exports;
}

}  // namespace
}  // namespace layercast

static Napi::Object layercast_init(Napi::Env env, Napi::Object exports) { return layercast::init(env, exports); }

NODE_API_MODULE(layercast, layercast_init)
