#include "runtime/tokenizer/sentencepiece_wrapper.h"

#include <sentencepiece_processor.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

struct rt_spm {
    sentencepiece::SentencePieceProcessor processor;
};

rt_spm *rt_spm_open(const void *model, size_t size, char *message, size_t message_size) {
    try {
        auto spm = std::make_unique<rt_spm>();
        auto status = spm->processor.LoadFromSerializedProto(absl::string_view(static_cast<const char *>(model), size));
        if (status.ok()) return spm.release();
        std::snprintf(message, message_size, "%s", status.error_message());
    } catch (const std::exception &cause) {
        std::snprintf(message, message_size, "%s", cause.what());
    } catch (...) {
        std::snprintf(message, message_size, "the library failed");
    }
    return nullptr;
}

void rt_spm_close(rt_spm *spm) { delete spm; }

int32_t rt_spm_size(const rt_spm *spm) { return spm->processor.GetPieceSize(); }

int32_t rt_spm_bos(const rt_spm *spm) { return spm->processor.bos_id(); }
int32_t rt_spm_eos(const rt_spm *spm) { return spm->processor.eos_id(); }
int32_t rt_spm_unknown(const rt_spm *spm) { return spm->processor.unk_id(); }

rt_spm_result rt_spm_encode(const rt_spm *spm, const char *text, size_t length, bool (*emit)(void *context, int32_t id),
                            void *context) {
    try {
        std::vector<int> ids;
        if (!spm->processor.Encode(absl::string_view(text, length), &ids).ok()) return RT_SPM_FAILED;
        for (int id : ids) {
            if (!emit(context, id)) return RT_SPM_STOPPED;
        }
        return RT_SPM_DONE;
    } catch (const std::bad_alloc &) {
        return RT_SPM_NO_MEMORY;
    } catch (...) {
        return RT_SPM_FAILED;
    }
}
