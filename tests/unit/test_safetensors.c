/* The safetensors reader: what it reads, and what it refuses and how it says so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/file.h"
#include "runtime/model/metadata.h"
#include "runtime/model/safetensors.h"
#include "tests/support/scratch.h"

static const char fixture[] = "tests/golden/models/qwen2-tied/model.safetensors";
static const char sharded_fixture[] = "tests/golden/models/llama-linear-rope-sharded";

/* A file image: the header's length, the header, `data_size` bytes 0, 1, 2, ... */
static void make_image(bis_buf *image, const char *header, size_t data_size) {
    uint64_t length = strlen(header);
    bis_buf_clear(image);
    for (int i = 0; i < 8; i++) bis_buf_putc(image, (char)(length >> (8 * i) & 0xff));
    bis_buf_puts(image, header);
    for (size_t i = 0; i < data_size; i++) bis_buf_putc(image, (char)(i & 0xff));
    assert_false(image->failed);
}

static bis_status open_image(const char *header, size_t data_size, bis_buf *image, rt_safetensors **file,
                             bis_error *error) {
    make_image(image, header, data_size);
    return rt_safetensors_open_memory(image->data, image->length, "some/file", file, error);
}

static void assert_text_has(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("'%s' does not contain '%s'", text, part);
}

static void reads_every_type_with_its_size(void **state) {
    (void)state;
    static const struct {
        const char *name;
        rt_stored_type type;
        size_t bytes; /* of eight elements */
    } cases[] = {
        {"F4", RT_STORED_F4, 4},           {"F6_E2M3", RT_STORED_F6_E2M3, 6}, {"F6_E3M2", RT_STORED_F6_E3M2, 6},
        {"BOOL", RT_STORED_BOOL, 8},       {"U8", RT_STORED_U8, 8},           {"I8", RT_STORED_I8, 8},
        {"F8_E5M2", RT_STORED_F8_E5M2, 8}, {"F8_E4M3", RT_STORED_F8_E4M3, 8}, {"F8_E8M0", RT_STORED_F8_E8M0, 8},
        {"I16", RT_STORED_I16, 16},        {"U16", RT_STORED_U16, 16},        {"F16", RT_STORED_F16, 16},
        {"BF16", RT_STORED_BF16, 16},      {"I32", RT_STORED_I32, 32},        {"U32", RT_STORED_U32, 32},
        {"F32", RT_STORED_F32, 32},        {"F64", RT_STORED_F64, 64},        {"I64", RT_STORED_I64, 64},
        {"U64", RT_STORED_U64, 64},        {"C64", RT_STORED_C64, 64},
    };
    bis_buf image = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char header[160];
        snprintf(header, sizeof header, "{\"t\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%zu]}}  ",
                 cases[i].name, cases[i].bytes);
        rt_safetensors *file;
        bis_error error;
        if (open_image(header, cases[i].bytes, &image, &file, &error)) fail_msg("%s", error.text);
        const rt_stored_tensor *tensor = rt_safetensors_find(file, "t");
        assert_non_null(tensor);
        assert_int_equal(tensor->type, cases[i].type);
        assert_int_equal(tensor->bytes, cases[i].bytes);
        assert_int_equal(tensor->dims, 2);
        assert_int_equal(tensor->shape[1], 4);
        assert_string_equal(rt_stored_type_name(tensor->type), cases[i].name);
        rt_safetensors_close(file);
    }
    bis_buf_free(&image);
}

static void finds_tensors_by_name_wherever_they_lie(void **state) {
    (void)state;
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                                 "\"zeta\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
                                 "\"empty\":{\"dtype\":\"F32\",\"shape\":[4,0],\"data_offsets\":[3,3]},"
                                 "\"scalar\":{\"dtype\":\"I16\",\"shape\":[],\"data_offsets\":[7,9],\"extra\":1},"
                                 "\"alpha\":{\"shape\":[1],\"data_offsets\":[3,7],\"dtype\":\"I32\"}}";
    bis_buf image = {0};
    rt_safetensors *file;
    bis_error error;
    if (open_image(header, 9, &image, &file, &error)) fail_msg("%s", error.text);
    assert_int_equal(rt_safetensors_count(file), 4);
    assert_string_equal(rt_safetensors_at(file, 0)->name, "alpha");
    assert_string_equal(rt_safetensors_at(file, 3)->name, "zeta");
    const unsigned char *data = rt_safetensors_find(file, "scalar")->data;
    assert_int_equal(data[0], 7);
    assert_int_equal(rt_safetensors_find(file, "scalar")->dims, 0);
    assert_int_equal(rt_safetensors_find(file, "empty")->bytes, 0);
    assert_string_equal(rt_safetensors_find(file, "zeta")->file, "some/file");
    assert_null(rt_safetensors_find(file, "__metadata__"));
    assert_null(rt_safetensors_find(file, "alph"));
    assert_int_equal(rt_safetensors_modified(file), 0);
    rt_safetensors_close(file);
    bis_buf_free(&image);
}

static void a_file_without_tensors_is_empty_not_wrong(void **state) {
    (void)state;
    bis_buf image = {0};
    rt_safetensors *file;
    assert_int_equal(open_image("{}", 0, &image, &file, NULL), BIS_OK);
    assert_int_equal(rt_safetensors_count(file), 0);
    assert_null(rt_safetensors_find(file, ""));
    rt_safetensors_close(file);
    bis_buf_free(&image);
}

#define ENTRY(name, dtype, shape, offsets)                                                                             \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define ONE(dtype, shape, offsets) "{" ENTRY("t", dtype, shape, offsets) "}"

/* Each header comes with 8 bytes of data. */
static const struct {
    const char *header, *said;
} lies[] = {
    {"", "not valid JSON"},
    {"[]", "not a JSON object"},
    {"{} x", "not valid JSON"},
    {"{\"t\":", "not valid JSON"},
    {"{\"t\":1}", "'t' is not an object"},
    {"{\"\xff\":1}", "not UTF-8"},
    {ONE("F31", "[2]", "[0,8]"), "unknown dtype \"F31\""},
    {"{\"t\":{\"shape\":[2],\"data_offsets\":[0,8]}}", "unknown dtype missing"},
    {"{\"t\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", "unknown dtype 7"},
    {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", "bad shape"},
    {ONE("F32", "2", "[0,8]"), "bad shape"},
    {ONE("F32", "[-2]", "[0,8]"), "bad shape"},
    {ONE("F32", "[2.5]", "[0,8]"), "bad shape"},
    {ONE("F32", "[\"2\"]", "[0,8]"), "bad shape"},
    {ONE("F32", "[1e308]", "[0,8]"), "bad shape"},
    {ONE("F32", "[9007199254740992,9007199254740992]", "[0,8]"), "bad shape"},
    {ONE("U8", "[4294967296,4294967296,0]", "[0,0]"), "bad shape"},
    {ONE("F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), "bad shape"},
    {ONE("F4", "[3]", "[0,2]"), "bad shape"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2]}}", "bad data_offsets"},
    {ONE("F32", "[2]", "[8]"), "bad data_offsets"},
    {ONE("F32", "[2]", "[0,8,8]"), "bad data_offsets"},
    {ONE("F32", "[2]", "[8,0]"), "bad data_offsets"},
    {ONE("F32", "[2]", "[-8,0]"), "bad data_offsets"},
    {ONE("F32", "[2]", "[0,8.5]"), "bad data_offsets"},
    {ONE("F32", "[2]", "[0,\"8\"]"), "bad data_offsets"},
    {ONE("F32", "[2]", "[0,1e308]"), "bad data_offsets"},
    {ONE("F32", "[3]", "[0,12]"), "ends at data byte 12 of 8"},
    {ONE("F32", "[2]", "[9007199254740984,9007199254740992]"), "is cut short"},
    {ONE("F32", "[1]", "[0,8]"), "has 8 bytes of data where its shape and dtype need 4"},
    {ONE("F32", "[2]", "[0,4]"), "has 4 bytes of data where its shape and dtype need 8"},
    {ONE("F32", "[1]", "[0,4]"), "the last 4 bytes belong to no tensor"},
    {ONE("F32", "[1]", "[4,8]"), "follows bytes that belong to no tensor"},
    {"{" ENTRY("a", "U8", "[5]", "[0,5]") "," ENTRY("b", "U8", "[4]", "[4,8]") "}", "'b' overlaps"},
    {"{" ENTRY("a", "U8", "[8]", "[0,8]") "," ENTRY("b", "U8", "[8]", "[0,8]") "}", "overlaps"},
    {"{" ENTRY("a", "U8", "[4]", "[0,4]") "," ENTRY("a", "U8", "[4]", "[4,8]") "}", "'a' is stored twice"},
};

static void a_lying_header_is_refused_with_its_reason(void **state) {
    (void)state;
    bis_buf image = {0};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        bis_error error;
        rt_safetensors *file = NULL;
        bis_status status = open_image(lies[i].header, 8, &image, &file, &error);
        if (status != BIS_ERR_FORMAT) fail_msg("%s: status %s", lies[i].header, bis_status_name(status));
        assert_null(file);
        assert_text_has(error.text, "some/file");
        assert_text_has(error.text, lies[i].said);
    }
    bis_buf_free(&image);
}

static void a_lying_header_length_is_refused(void **state) {
    (void)state;
    static const uint64_t lengths[] = {3, 11, 100000001, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 7};
    bis_buf image = {0};
    make_image(&image, "{}", 0);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        for (int byte = 0; byte < 8; byte++) image.data[byte] = (char)(lengths[i] >> (8 * byte) & 0xff);
        rt_safetensors *file;
        assert_int_equal(rt_safetensors_open_memory(image.data, image.length, "f", &file, NULL), BIS_ERR_FORMAT);
    }
    bis_buf_free(&image);
}

static void deep_nesting_is_refused(void **state) {
    (void)state;
    bis_buf header = {0}, image = {0};
    bis_buf_puts(&header, "{\"t\":");
    for (int i = 0; i < 100000; i++) bis_buf_putc(&header, '[');
    rt_safetensors *file;
    assert_int_equal(open_image(header.data, 0, &image, &file, NULL), BIS_ERR_FORMAT);
    bis_buf_free(&header);
    bis_buf_free(&image);
}

static void read_fixture(bis_buf *image) {
    bis_error error;
    if (bis_read_file(fixture, 1 << 20, image, &error)) fail_msg("%s", error.text);
}

/* Copies to memory of exactly that size, so that the address sanitizer sees a read behind the end. */
static void assert_truncation_is_refused(const bis_buf *image, size_t size) {
    char *copy = bis_malloc(size);
    assert_non_null(copy);
    memcpy(copy, image->data, size);
    rt_safetensors *file;
    bis_error error;
    bis_status status = rt_safetensors_open_memory(copy, size, "cut", &file, &error);
    bis_free(copy);
    if (status != BIS_ERR_FORMAT) fail_msg("accepted when cut to %zu bytes", size);
    assert_text_has(error.text, "cut");
}

static void truncation_anywhere_is_refused(void **state) {
    (void)state;
    bis_buf image = {0};
    read_fixture(&image);
    size_t header = 8 + (size_t)(unsigned char)image.data[0] + 256 * (size_t)(unsigned char)image.data[1];
    assert_in_range(header, 1000, 10000);
    for (size_t size = 0; size <= header; size++) assert_truncation_is_refused(&image, size);
    for (size_t size = header; size < image.length; size += 997) assert_truncation_is_refused(&image, size);
    assert_truncation_is_refused(&image, image.length - 1);
    bis_buf_free(&image);
}

/* Every tensor of an accepted file lies inside it, whatever single byte of the header was changed. */
static void a_changed_header_byte_never_leads_outside_the_file(void **state) {
    (void)state;
    static const unsigned char flips[] = {0x01, 0x10, 0xff};
    bis_buf image = {0};
    size_t accepted = 0, refused = 0;
    read_fixture(&image);
    for (size_t at = 0; at < 2000; at++) {
        for (size_t f = 0; f < sizeof flips; f++) {
            image.data[at] = (char)(image.data[at] ^ (char)flips[f]);
            rt_safetensors *file;
            bool opened = !rt_safetensors_open_memory(image.data, image.length, "changed", &file, NULL);
            image.data[at] = (char)(image.data[at] ^ (char)flips[f]);
            accepted += opened;
            refused += !opened;
            for (size_t i = 0; opened && i < rt_safetensors_count(file); i++) {
                const rt_stored_tensor *tensor = rt_safetensors_at(file, i);
                const char *data = tensor->data;
                assert_true(data >= image.data && tensor->bytes <= (size_t)(image.data + image.length - data));
            }
            if (opened) rt_safetensors_close(file);
        }
    }
    assert_true(accepted > 0 && refused > 1000); /* a changed name is still a name */
    bis_buf_free(&image);
}

static void a_missing_or_unreadable_file_is_named(void **state) {
    (void)state;
    rt_safetensors *file;
    bis_error error;
    assert_int_equal(rt_safetensors_open("no/such.safetensors", &file, &error), BIS_ERR_NOT_FOUND);
    assert_text_has(error.text, "no/such.safetensors");
    assert_int_equal(rt_safetensors_open("tests", &file, &error), BIS_ERR_IO);
    scratch_make();
    scratch_write("model.safetensors", "", 0);
    assert_int_equal(rt_safetensors_open(scratch_path("model.safetensors"), &file, &error), BIS_ERR_FORMAT);
    assert_text_has(error.text, "only 0 bytes");
}

static void a_mapped_file_gives_the_stored_numbers(void **state) {
    (void)state;
    rt_safetensors *file;
    bis_error error;
    if (rt_safetensors_open("tests/golden/models/llama2-mha/expected.safetensors", &file, &error)) {
        fail_msg("%s", error.text);
    }
    const rt_stored_tensor *ids = rt_safetensors_find(file, "input_ids"), *logits = rt_safetensors_find(file, "logits");
    assert_non_null(ids);
    assert_non_null(logits);
    assert_int_equal(ids->type, RT_STORED_I32);
    assert_int_equal(ids->shape[0], 24);
    assert_int_equal(logits->type, RT_STORED_F32);
    assert_int_equal(logits->dims, 2);
    assert_int_equal(logits->shape[1], 101);
    int32_t first;
    memcpy(&first, ids->data, sizeof first);
    assert_int_equal(first, 1);
    assert_true(rt_safetensors_modified(file) > 0);
    rt_safetensors_close(file);
}

/* ---- folders ---- */

static void shards_are_read_as_one(void **state) {
    (void)state;
    rt_safetensors *file;
    bis_error error;
    if (rt_safetensors_open_folder(sharded_fixture, &file, &error)) fail_msg("%s", error.text);
    assert_int_equal(rt_safetensors_count(file), 21);
    const rt_stored_tensor *norm = rt_safetensors_find(file, "model.norm.weight");
    const rt_stored_tensor *embedding = rt_safetensors_find(file, "model.embed_tokens.weight");
    assert_non_null(norm);
    assert_non_null(embedding);
    assert_string_not_equal(norm->file, embedding->file);
    rt_safetensors_close(file);
}

static void write_image(const char *name, const char *header, size_t data_size) {
    bis_buf image = {0};
    make_image(&image, header, data_size);
    scratch_write(name, image.data, image.length);
    bis_buf_free(&image);
}

static void a_wrong_index_is_refused_with_its_reason(void **state) {
    (void)state;
    static const struct {
        const char *index, *said;
        bis_status status;
    } cases[] = {
        {"{\"weight_map\":", "not valid JSON", BIS_ERR_FORMAT},
        {"{}", "weight_map must be an object", BIS_ERR_FORMAT},
        {"{\"weight_map\":{}}", "weight_map must be an object", BIS_ERR_FORMAT},
        {"{\"weight_map\":[\"one\"]}", "weight_map must be an object", BIS_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":3}}", "the file of tensor 'a' is not a string", BIS_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"../one\"}}", "'../one' is not a plain file name", BIS_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "is not a plain file name", BIS_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"..\"}}", "is not a plain file name", BIS_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"\"}}", "is not a plain file name", BIS_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"one\",\"c\":\"three\"}}", "three is missing: shard 2 of the 2", BIS_ERR_NOT_FOUND},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"one\"}}", "'b' is in one, but it is not", BIS_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"two\",\"a\":\"two\"}}", "'a' is in two, but it is not",
         BIS_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"copy\"}}", "'a' is stored twice", BIS_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"model.safetensors.index.json\"}}", "index.json", BIS_ERR_FORMAT},
    };
    const char *folder = scratch_make();
    write_image("one", "{" ENTRY("a", "U8", "[4]", "[0,4]") "}", 4);
    write_image("copy", "{" ENTRY("a", "U8", "[4]", "[0,4]") "}", 4);
    write_image("two", "{" ENTRY("b", "U8", "[4]", "[0,4]") "}", 4);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_write_text("model.safetensors.index.json", cases[i].index);
        rt_safetensors *file;
        bis_error error;
        bis_status status = rt_safetensors_open_folder(folder, &file, &error);
        if (status != cases[i].status) fail_msg("%s: status %s", cases[i].index, bis_status_name(status));
        assert_text_has(error.text, cases[i].said);
    }
    scratch_write_text("model.safetensors.index.json", "{\"weight_map\":{\"a\":\"one\",\"b\":\"two\"}}");
    rt_safetensors *file;
    assert_int_equal(rt_safetensors_open_folder(folder, &file, NULL), BIS_OK);
    rt_safetensors_close(file);
}

static void a_folder_without_weights_says_what_it_should_hold(void **state) {
    (void)state;
    rt_safetensors *file;
    bis_error error;
    assert_int_equal(rt_safetensors_open_folder(scratch_make(), &file, &error), BIS_ERR_NOT_FOUND);
    assert_text_has(error.text, "neither model.safetensors nor model.safetensors.index.json");
}

/* Fails the first allocation, then the second, and so on until the folder opens. */
static void every_failed_allocation_is_reported(void **state) {
    (void)state;
    long failures = 0;
    for (;; failures++) {
        rt_safetensors *file = NULL;
        bis_error error;
        bis_alloc_fail_after(failures);
        bis_status status = rt_safetensors_open_folder(sharded_fixture, &file, &error);
        bis_alloc_fail_after(-1);
        if (!status) {
            rt_safetensors_close(file);
            break;
        }
        assert_null(file);
        assert_true(status == BIS_ERR_NOMEM || status == BIS_ERR_FORMAT);
        assert_text_has(error.text, "no memory");
    }
    assert_true(failures > 50);
}

static int remove_scratch(void **state) {
    (void)state;
    scratch_remove();
    return 0;
}

int main(void) {
    cJSON_Hooks hooks = {bis_malloc, bis_free};
    cJSON_InitHooks(&hooks);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_every_type_with_its_size),
        cmocka_unit_test(finds_tensors_by_name_wherever_they_lie),
        cmocka_unit_test(a_file_without_tensors_is_empty_not_wrong),
        cmocka_unit_test(a_lying_header_is_refused_with_its_reason),
        cmocka_unit_test(a_lying_header_length_is_refused),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(truncation_anywhere_is_refused),
        cmocka_unit_test(a_changed_header_byte_never_leads_outside_the_file),
        cmocka_unit_test(a_missing_or_unreadable_file_is_named),
        cmocka_unit_test(a_mapped_file_gives_the_stored_numbers),
        cmocka_unit_test(shards_are_read_as_one),
        cmocka_unit_test(a_wrong_index_is_refused_with_its_reason),
        cmocka_unit_test(a_folder_without_weights_says_what_it_should_hold),
        cmocka_unit_test(every_failed_allocation_is_reported),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, remove_scratch);
}
