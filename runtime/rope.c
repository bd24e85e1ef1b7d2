#include "runtime/rope.h"

#include <math.h>

static const double TWO_PI = 6.283185307179586476925;

static double llama3_frequency(const rt_rope_config *rope, double frequency) {
    double turns = rope->original_context * frequency / TWO_PI; /* full turns within the original context */
    if (turns < rope->low_freq_factor) return frequency / rope->factor;
    if (turns > rope->high_freq_factor) return frequency;
    double keep = (turns - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return keep * frequency + (1 - keep) * frequency / rope->factor;
}

static double frequency_of(const rt_rope_config *rope, int pair, int head_dim) {
    double frequency = pow(rope->theta, -2.0 * pair / head_dim);
    switch (rope->scaling) {
    case RT_ROPE_LINEAR: return frequency / rope->factor;
    case RT_ROPE_LLAMA3: return llama3_frequency(rope, frequency);
    case RT_ROPE_PLAIN: break;
    }
    return frequency;
}

void rt_rope_fill_table(const rt_rope_config *rope, int head_dim, int positions, float *table) {
    int half = head_dim / 2;
    for (int i = 0; i < half; i++) {
        double frequency = frequency_of(rope, i, head_dim);
        for (int position = 0; position < positions; position++) {
            float *row = table + (size_t)position * (size_t)head_dim;
            row[i] = (float)cos(position * frequency);
            row[half + i] = (float)sin(position * frequency);
        }
    }
}
