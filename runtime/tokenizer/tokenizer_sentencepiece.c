/* SentencePiece models (tokenizer.model): checked and read here, encoded by the library.
 *
 * The file is a protobuf message. It is walked once, field by field, for what the library does not
 * check (scores, the normalization tables it would follow blindly) and for what it does not tell
 * (types of pieces, flags). The library gets a copy without the self-test samples and with the dummy
 * prefix switched off: whether a leading space is added depends on what stands before the text,
 * so it is added here (see rt_dummy_prefix).
 */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "runtime/tokenizer/tokenizer_internal.h"

typedef struct proto_field {
    uint32_t number;
    uint64_t value; /* of a varint or a fixed number */
    const unsigned char *bytes;
    size_t length; /* of a string or message */
} proto_field;

typedef struct proto_reader {
    const unsigned char *at, *end;
    bool broken;
} proto_reader;

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
enum { MODEL_PIECE = 1, MODEL_TRAINER = 2, MODEL_NORMALIZER = 3, MODEL_SELF_TEST = 4, MODEL_DENORMALIZER = 5 };
enum { PIECE_TEXT = 1, PIECE_SCORE = 2, PIECE_TYPE = 3 };
enum { TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4 };
enum { NORMALIZER_TABLE = 2, NORMALIZER_DUMMY_PREFIX = 3, NORMALIZER_TRIM = 4, NORMALIZER_ESCAPE = 5 };
enum { TRAINER_SPACE_SUFFIX = 24 };

typedef struct model_facts {
    bool dummy_prefix, trims_spaces, escapes_spaces, space_suffix, has_table;
} model_facts;

static uint64_t read_varint(proto_reader *reader) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && reader->at < reader->end; shift += 7) {
        unsigned char byte = *reader->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return value;
    }
    reader->broken = true;
    return 0;
}

static uint64_t read_fixed(proto_reader *reader, size_t bytes) {
    uint64_t value = 0;
    if ((size_t)(reader->end - reader->at) < bytes) {
        reader->broken = true;
        return 0;
    }
    for (size_t i = 0; i < bytes; i++) value |= (uint64_t)reader->at[i] << 8 * i;
    reader->at += bytes;
    return value;
}

/* False at the end or where the message is broken. */
static bool next_field(proto_reader *reader, proto_field *field) {
    if (reader->broken || reader->at == reader->end) return false;
    uint64_t tag = read_varint(reader);
    *field = (proto_field){.number = (uint32_t)(tag >> 3)};
    switch (tag & 7) {
    case WIRE_VARINT: field->value = read_varint(reader); break;
    case WIRE_64: field->value = read_fixed(reader, 8); break;
    case WIRE_32: field->value = read_fixed(reader, 4); break;
    case WIRE_BYTES: {
        uint64_t length = read_varint(reader);
        if (reader->broken || length > (uint64_t)(reader->end - reader->at)) {
            reader->broken = true;
            break;
        }
        field->bytes = reader->at;
        field->length = (size_t)length;
        reader->at += length;
        break;
    }
    default: reader->broken = true;
    }
    if (field->number == 0 || tag >> 3 > UINT32_MAX) reader->broken = true;
    return !reader->broken;
}

static uint32_t trie_unit(const unsigned char *bytes, size_t index) {
    uint32_t unit;
    memcpy(&unit, bytes + 4 * index, sizeof unit);
    return unit;
}

/* The normalization table is a double-array trie (units of 32 bits: bit 31 marks a value, bits 10-30
 * and 9 give the offset of the children, bit 8 says that a value is among them) and the texts its
 * values point to. The library follows both without looking, so every reachable index is checked:
 * children lie anywhere in the aligned block of 256 units around the offset. */
static bool table_is_sound(const unsigned char *bytes, size_t length) {
    if (length == 0) return true;
    if (length < 8) return false;
    uint32_t trie_bytes = trie_unit(bytes, 0);
    if (trie_bytes == 0 || trie_bytes % 4 || trie_bytes >= length - 4) return false;
    const unsigned char *trie = bytes + 4, *texts = trie + trie_bytes;
    size_t units = trie_bytes / 4, texts_length = length - 4 - trie_bytes;
    if (texts[texts_length - 1] != '\0') return false;
    for (size_t i = 0; i < units; i++) {
        uint32_t unit = trie_unit(trie, i);
        if (unit >> 31) continue;
        size_t block = i ^ ((size_t)(unit >> 10) << ((unit & 0x200) >> 6));
        if ((block | 0xff) >= units) return false;
        if (unit & 0x100 && (trie_unit(trie, block) & 0x7fffffffu) >= texts_length) return false;
    }
    return true;
}

/* Marks the piece that comes next; the marks grow with the vocabulary. */
static bool mark_user_defined(rt_tokenizer *tokenizer, bool user_defined) {
    int32_t id = tokenizer->spm_size;
    if ((id & (id + 1)) == 0) { /* 0, 1, 3, 7, ...: room for as many again */
        uint8_t *marks = bis_realloc(tokenizer->user_defined, 2 * (size_t)id + 1);
        if (!marks) return false;
        tokenizer->user_defined = marks;
    }
    tokenizer->user_defined[tokenizer->spm_size++] = user_defined;
    return true;
}

static bis_status read_piece(rt_tokenizer *tokenizer, proto_field message, bis_error *error) {
    proto_reader reader = {message.bytes, message.bytes + message.length, false};
    proto_field field, text = {0};
    uint64_t type = 1;
    float score = 0;
    int32_t id = tokenizer->vocab.size;
    while (next_field(&reader, &field)) {
        if (field.number == PIECE_TEXT) text = field;
        if (field.number == PIECE_TYPE) type = field.value;
        if (field.number == PIECE_SCORE) {
            uint32_t bits = (uint32_t)field.value;
            memcpy(&score, &bits, sizeof score);
        }
    }
    if (reader.broken || !text.bytes || text.length == 0) {
        return bis_fail(error, BIS_ERR_FORMAT, "piece %d is malformed", id);
    }
    if (!isfinite(score)) return bis_fail(error, BIS_ERR_FORMAT, "the score of piece %d is not a number", id);
    bis_status status = rt_vocab_add(&tokenizer->vocab, (const char *)text.bytes, text.length, id, error);
    if (!status && !mark_user_defined(tokenizer, type == TYPE_USER_DEFINED)) {
        status = bis_fail(error, BIS_ERR_NOMEM, "no memory for the vocabulary");
    }
    if (status || (type != TYPE_UNKNOWN && type != TYPE_CONTROL)) return status;
    char *content = bis_strndup((const char *)text.bytes, text.length);
    if (!content) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the vocabulary");
    status = rt_put_added_token(tokenizer, content, &(rt_added_token){.id = id, .special = true}, error);
    bis_free(content);
    return status;
}

static bis_status read_normalizer(proto_field message, model_facts *facts, bis_error *error) {
    proto_reader reader = {message.bytes, message.bytes + message.length, false};
    proto_field field;
    while (next_field(&reader, &field)) {
        if (field.number == NORMALIZER_DUMMY_PREFIX) facts->dummy_prefix = field.value != 0;
        if (field.number == NORMALIZER_TRIM) facts->trims_spaces = field.value != 0;
        if (field.number == NORMALIZER_ESCAPE) facts->escapes_spaces = field.value != 0;
        if (field.number == NORMALIZER_TABLE && field.length > 0) facts->has_table = true;
        if (field.number == NORMALIZER_TABLE && !table_is_sound(field.bytes, field.bytes ? field.length : 1)) {
            return bis_fail(error, BIS_ERR_FORMAT, "the normalization table is malformed");
        }
    }
    return reader.broken ? bis_fail(error, BIS_ERR_FORMAT, "the normalizer is malformed") : BIS_OK;
}

static bis_status read_trainer(proto_field message, model_facts *facts, bis_error *error) {
    proto_reader reader = {message.bytes, message.bytes + message.length, false};
    proto_field field;
    while (next_field(&reader, &field)) {
        if (field.number == TRAINER_SPACE_SUFFIX) facts->space_suffix = field.value != 0;
    }
    return reader.broken ? bis_fail(error, BIS_ERR_FORMAT, "the trainer's settings are malformed") : BIS_OK;
}

/* Reads the model and copies it to *copy without its self-test samples. */
static bis_status read_model(rt_tokenizer *tokenizer, const bis_buf *file, bis_buf *copy, model_facts *facts,
                             bis_error *error) {
    const unsigned char *begin = (const unsigned char *)bis_buf_cstr(file);
    proto_reader reader = {begin, begin + file->length, false};
    proto_field field;
    for (const unsigned char *start = begin; next_field(&reader, &field); start = reader.at) {
        bis_status status = BIS_OK;
        bool is_message = field.number <= MODEL_DENORMALIZER;
        if (is_message && !field.bytes) break;
        if (field.number == MODEL_PIECE) status = read_piece(tokenizer, field, error);
        if (field.number == MODEL_TRAINER) status = read_trainer(field, facts, error);
        if (field.number == MODEL_NORMALIZER) status = read_normalizer(field, facts, error);
        if (field.number == MODEL_DENORMALIZER) status = read_normalizer(field, &(model_facts){0}, error);
        if (status) return status;
        if (field.number != MODEL_SELF_TEST) bis_buf_append(copy, start, (size_t)(reader.at - start));
    }
    if (reader.broken || reader.at != reader.end || tokenizer->vocab.size == 0) {
        return bis_fail(error, BIS_ERR_FORMAT,
                        "this is not a SentencePiece model (a tiktoken rank file must be converted to tokenizer.json)");
    }
    return copy->failed ? bis_fail(error, BIS_ERR_NOMEM, "no memory to read the model") : BIS_OK;
}

/* Later fields override earlier ones: appends a normalizer message that only says add_dummy_prefix = false. */
static bool switch_dummy_prefix_off(bis_buf *model) {
    static const unsigned char message[] = {MODEL_NORMALIZER << 3 | WIRE_BYTES, 2, NORMALIZER_DUMMY_PREFIX << 3, 0};
    return bis_buf_append(model, message, sizeof message);
}

static bis_status open_library(rt_tokenizer *tokenizer, const bis_buf *model, bis_error *error) {
    char message[200] = "";
    tokenizer->spm = rt_spm_open(model->data, model->length, message, sizeof message);
    if (!tokenizer->spm) return bis_fail(error, BIS_ERR_FORMAT, "the sentencepiece library refuses it: %s", message);
    if (rt_spm_size(tokenizer->spm) != tokenizer->vocab.size) {
        return bis_fail(error, BIS_ERR_FORMAT, "the sentencepiece library reads %d pieces, the file has %d",
                        rt_spm_size(tokenizer->spm), tokenizer->vocab.size);
    }
    return BIS_OK;
}

static void set_prefix_and_template(rt_tokenizer *tokenizer, const model_facts *facts, const rt_side *side) {
    bool wanted = facts->dummy_prefix && side->add_prefix_space != 0;
    bool by_library = facts->trims_spaces && facts->has_table;
    rt_dummy_prefix kind = side->legacy == 1 ? RT_DUMMY_ALWAYS : RT_DUMMY_FIRST;
    tokenizer->dummy_prefix = wanted && !by_library ? kind : RT_DUMMY_NEVER;
    tokenizer->trims_spaces = facts->trims_spaces;
    tokenizer->decode.strip = ' ';
    tokenizer->decode.strip_count = wanted ? 1 : 0;
    tokenizer->unknown = rt_spm_unknown(tokenizer->spm);
    tokenizer->bos = rt_spm_bos(tokenizer->spm);
    if (tokenizer->bos >= 0) tokenizer->prefix[tokenizer->prefix_count++] = tokenizer->bos;
    int32_t eos = rt_spm_eos(tokenizer->spm);
    if (eos >= 0) tokenizer->eos[tokenizer->eos_count++] = eos;
}

bis_status rt_load_sentencepiece(rt_tokenizer *tokenizer, const char *path, const rt_side *side, bis_error *error) {
    bis_buf file = {0}, model = {0};
    bis_status status = bis_read_file(path, RT_TOKENIZER_FILE_MAX, &file, error);
    if (status) return status;
    tokenizer->type = RT_TYPE_SENTENCEPIECE;
    model_facts facts = {true, true, true, false, false};
    status = read_model(tokenizer, &file, &model, &facts, error);
    if (!status && (facts.space_suffix || !facts.escapes_spaces)) {
        status = bis_fail(error, BIS_ERR_UNSUPPORTED, "models with %s are not supported",
                          facts.space_suffix ? "treat_whitespace_as_suffix" : "escape_whitespaces = false");
    }
    bool own_prefix = !(facts.trims_spaces && facts.has_table) || side->add_prefix_space == 0;
    if (!status && own_prefix && !switch_dummy_prefix_off(&model)) {
        status = bis_fail(error, BIS_ERR_NOMEM, "no memory to read the model");
    }
    if (!status) status = open_library(tokenizer, &model, error);
    if (!status) {
        tokenizer->decode.byte_fallback = true;
        memcpy(tokenizer->decode.replace[0].from, RT_SPACE_MARK, sizeof RT_SPACE_MARK);
        memcpy(tokenizer->decode.replace[0].to, " ", 2);
        tokenizer->decode.replace_count = 1;
        set_prefix_and_template(tokenizer, &facts, side);
    }
    bis_buf_free(&file);
    bis_buf_free(&model);
    return status ? bis_fail_within(error, "%s", path) : BIS_OK;
}
