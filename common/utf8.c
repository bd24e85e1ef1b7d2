#include "common/utf8.h"

/* Bytes announced by a lead byte; 0 for a byte that cannot start a character. */
static size_t lead_length(unsigned char lead) {
    if (lead < 0x80) return 1;
    if (lead >= 0xc2 && lead <= 0xdf) return 2;
    if (lead >= 0xe0 && lead <= 0xef) return 3;
    if (lead >= 0xf0 && lead <= 0xf4) return 4;
    return 0;
}

/* The second byte's range excludes overlong forms, surrogates and values above U+10FFFF. */
static bool second_is_valid(unsigned char lead, unsigned char second) {
    switch (lead) {
    case 0xe0: return second >= 0xa0 && second <= 0xbf;
    case 0xed: return second >= 0x80 && second <= 0x9f;
    case 0xf0: return second >= 0x90 && second <= 0xbf;
    case 0xf4: return second >= 0x80 && second <= 0x8f;
    default: return second >= 0x80 && second <= 0xbf;
    }
}

/* Number of leading bytes (up to the announced length) that fit a valid character. */
static size_t valid_bytes(const unsigned char *bytes, size_t length, size_t want) {
    size_t n = 1;
    if (n < want && n < length && second_is_valid(bytes[0], bytes[1])) {
        for (n = 2; n < want && n < length && (bytes[n] & 0xc0) == 0x80; n++) {
        }
    }
    return n;
}

size_t bis_utf8_decode(const char *text, size_t length, uint32_t *code_point) {
    if (length == 0) return 0;
    const unsigned char *bytes = (const unsigned char *)text;
    size_t want = lead_length(bytes[0]);
    if (want == 0 || want > length || valid_bytes(bytes, length, want) < want) return 0;
    uint32_t value = want == 1 ? bytes[0] : bytes[0] & (0xffu >> (want + 1));
    for (size_t i = 1; i < want; i++) value = value << 6 | (bytes[i] & 0x3f);
    *code_point = value;
    return want;
}

size_t bis_utf8_encode(uint32_t code_point, char out[BIS_UTF8_MAX]) {
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    if (code_point < 0x800) {
        out[0] = (char)(0xc0 | code_point >> 6);
        out[1] = (char)(0x80 | (code_point & 0x3f));
        return 2;
    }
    if (code_point < 0x10000) {
        if (code_point >= 0xd800 && code_point <= 0xdfff) return 0;
        out[0] = (char)(0xe0 | code_point >> 12);
        out[1] = (char)(0x80 | (code_point >> 6 & 0x3f));
        out[2] = (char)(0x80 | (code_point & 0x3f));
        return 3;
    }
    if (code_point > 0x10ffff) return 0;
    out[0] = (char)(0xf0 | code_point >> 18);
    out[1] = (char)(0x80 | (code_point >> 12 & 0x3f));
    out[2] = (char)(0x80 | (code_point >> 6 & 0x3f));
    out[3] = (char)(0x80 | (code_point & 0x3f));
    return 4;
}

bool bis_utf8_valid(const char *text, size_t length) {
    uint32_t ignored;
    for (size_t i = 0; i < length;) {
        size_t n = bis_utf8_decode(text + i, length - i, &ignored);
        if (n == 0) return false;
        i += n;
    }
    return true;
}

size_t bis_utf8_complete_prefix(const char *text, size_t length) {
    const unsigned char *bytes = (const unsigned char *)text;
    for (size_t back = 1; back <= 3 && back <= length; back++) {
        const unsigned char *lead = bytes + length - back;
        if ((*lead & 0xc0) == 0x80) continue;
        size_t want = lead_length(*lead);
        bool unfinished = want > back && valid_bytes(lead, back, want) == back;
        return unfinished ? length - back : length;
    }
    return length;
}
