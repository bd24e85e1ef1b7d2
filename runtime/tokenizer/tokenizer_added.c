#include "runtime/tokenizer/tokenizer_added.h"

#include <string.h>
#include <utf8proc.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "runtime/tokenizer/pretokenizer.h"
#include "runtime/tokenizer/tokenizer_vocab.h"

const rt_added_token *rt_added_find(const rt_added *added, int32_t id) {
    if (id < 0 || id >= added->of_id_count || added->of_id[id] < 0) return NULL;
    return &added->tokens[added->of_id[id]];
}

static bool grow_tokens(rt_added *added) {
    size_t capacity = added->capacity ? added->capacity * 2 : 16;
    rt_added_token *tokens = bis_reallocarray(added->tokens, capacity, sizeof *tokens);
    if (!tokens) return false;
    added->tokens = tokens;
    added->capacity = capacity;
    return true;
}

static bool grow_ids(rt_added *added, int32_t id) {
    int32_t count = added->of_id_count ? added->of_id_count : 256;
    while (count <= id) count *= 2;
    int32_t *of_id = bis_reallocarray(added->of_id, (size_t)count, sizeof *of_id);
    if (!of_id) return false;
    for (int32_t i = added->of_id_count; i < count; i++) of_id[i] = -1;
    added->of_id = of_id;
    added->of_id_count = count;
    return true;
}

bis_status rt_added_put(rt_added *added, const char *content, const rt_added_token *flags, bis_error *error) {
    size_t length = strlen(content);
    int32_t id = flags->id;
    if (length == 0) return bis_fail(error, BIS_ERR_FORMAT, "added token %d is empty", id);
    if (id < 0 || id >= RT_VOCAB_MAX) return bis_fail(error, BIS_ERR_LIMIT, "added token id %d is out of range", id);
    char *copy = bis_strndup(content, length);
    bool room = copy && (added->count < added->capacity || grow_tokens(added)) &&
                (id < added->of_id_count || grow_ids(added, id));
    if (!room) {
        bis_free(copy);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for the added tokens");
    }
    if (added->of_id[id] < 0) {
        added->tokens[added->count].content = NULL;
        added->of_id[id] = (int32_t)added->count++;
    }
    rt_added_token *token = &added->tokens[added->of_id[id]];
    bis_free(token->content);
    *token = *flags;
    token->content = copy;
    token->length = length;
    return BIS_OK;
}

static int32_t new_node(rt_trie *trie, unsigned char byte, int32_t sibling) {
    if (trie->count == trie->capacity) {
        if (trie->capacity > INT32_MAX / 2) return -1;
        int32_t capacity = trie->capacity ? trie->capacity * 2 : 64;
        rt_trie_node *nodes = bis_reallocarray(trie->nodes, (size_t)capacity, sizeof *nodes);
        if (!nodes) return -1;
        trie->nodes = nodes;
        trie->capacity = capacity;
    }
    trie->nodes[trie->count] = (rt_trie_node){-1, sibling, -1, byte};
    return trie->count++;
}

static int32_t find_child(const rt_trie *trie, int32_t node, unsigned char byte) {
    int32_t child = trie->nodes[node].child;
    while (child >= 0 && trie->nodes[child].byte != byte) child = trie->nodes[child].sibling;
    return child;
}

static bool insert_text(rt_trie *trie, const char *text, size_t length, int32_t token) {
    if (trie->count == 0) {
        if (new_node(trie, 0, -1) < 0) return false;
        for (int i = 0; i < 256; i++) trie->first[i] = -1;
    }
    int32_t node = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        int32_t child = find_child(trie, node, byte);
        if (child < 0) {
            child = new_node(trie, byte, trie->nodes[node].child);
            if (child < 0) return false;
            trie->nodes[node].child = child;
            if (node == 0) trie->first[byte] = child;
        }
        node = child;
    }
    if (node > 0) trie->nodes[node].token = token;
    return true;
}

bis_status rt_added_build(rt_added *added, const rt_normalizer *normalizer, bis_error *error) {
    bis_buf text = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < added->count; i++) {
        const rt_added_token *token = &added->tokens[i];
        if (!token->normalized || normalizer->count == 0) {
            ok = insert_text(&added->raw, token->content, token->length, (int32_t)i);
            continue;
        }
        ok = rt_normalizer_apply(normalizer, token->content, token->length, false, &text) == BIS_OK &&
             insert_text(&added->normalized, bis_buf_cstr(&text), text.length, (int32_t)i);
    }
    bis_buf_free(&text);
    return ok ? BIS_OK : bis_fail(error, BIS_ERR_NOMEM, "no memory for the added tokens");
}

/* The longest token at text[0..length): its bytes, 0 if none. */
static size_t longest_at(const rt_trie *trie, const char *text, size_t length, int32_t *token) {
    int32_t node = trie->first[(unsigned char)text[0]];
    size_t found = 0;
    for (size_t i = 1; node >= 0; i++) {
        if (trie->nodes[node].token >= 0) {
            found = i;
            *token = trie->nodes[node].token;
        }
        if (i >= length) break;
        node = find_child(trie, node, (unsigned char)text[i]);
    }
    return found;
}

/* A character of a regular expression's \w. */
static bool is_word(uint32_t c) {
    if (c == 0x200c || c == 0x200d) return true; /* joiners */
    if ((c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
        (c >= 0x1f170 && c <= 0x1f189)) {
        return true; /* letters in circles and squares: symbols by category, letters by property */
    }
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return false;
    }
}

/* The start of the character that ends at `end` (> 0), and its code point (0 where it is invalid). */
static size_t previous_character(const char *text, size_t end, uint32_t *c) {
    size_t start = end - 1;
    while (start > 0 && end - start < BIS_UTF8_MAX && ((unsigned char)text[start] & 0xc0) == 0x80) start--;
    if (bis_utf8_decode(text + start, end - start, c) == end - start) return start;
    *c = 0;
    return end - 1;
}

static bool stands_alone(const char *text, size_t length, size_t start, size_t end) {
    uint32_t c;
    if (start > 0) {
        previous_character(text, start, &c);
        if (is_word(c)) return false;
    }
    return bis_utf8_decode(text + end, length - end, &c) == 0 || !is_word(c);
}

static void take_white_space(const char *text, size_t length, size_t from, rt_added_match *match) {
    uint32_t c;
    if (match->token->left_strip) {
        while (match->start > from) {
            size_t start = previous_character(text, match->start, &c);
            if (start < from || !rt_is_white_space(c)) break;
            match->start = start;
        }
    }
    if (match->token->right_strip) {
        size_t bytes;
        while ((bytes = bis_utf8_decode(text + match->end, length - match->end, &c)) > 0 && rt_is_white_space(c)) {
            match->end += bytes;
        }
    }
}

bool rt_added_next(const rt_added *added, const rt_trie *trie, const char *text, size_t length, size_t from,
                   bool special, rt_added_match *match) {
    if (trie->count == 0) return false;
    for (size_t at = from; at < length;) {
        int32_t index = -1;
        size_t bytes = longest_at(trie, text + at, length - at, &index);
        if (bytes == 0) {
            at++;
            continue;
        }
        const rt_added_token *token = &added->tokens[index];
        bool plain = token->special && !special;
        if (token->single_word && !stands_alone(text, length, at, at + bytes)) {
            at += bytes;
            continue;
        }
        *match = (rt_added_match){at, at + bytes, at + bytes, token, plain};
        if (!plain) take_white_space(text, length, from, match);
        return true;
    }
    return false;
}

static void free_trie(rt_trie *trie) { bis_free(trie->nodes); }

void rt_added_free(rt_added *added) {
    for (size_t i = 0; i < added->count; i++) bis_free(added->tokens[i].content);
    bis_free(added->tokens);
    bis_free(added->of_id);
    free_trie(&added->raw);
    free_trie(&added->normalized);
    *added = (rt_added){0};
}
