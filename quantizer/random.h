/* Random numbers of the fine-tuner: hashes of a seed and an index, so that no order of use changes them. */
#ifndef BISUP_QUANTIZER_RANDOM_H
#define BISUP_QUANTIZER_RANDOM_H

#include <math.h>
#include <stdint.h>

/* SplitMix64's output function over seed and index. */
static inline uint64_t qz_random_bits(uint64_t seed, uint64_t index) {
    uint64_t z = (seed + 0x9e3779b97f4a7c15u) * 0xd1342543de82ef95u + index * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* In (0, 1). */
static inline double qz_random_unit(uint64_t seed, uint64_t index) {
    return ((double)(qz_random_bits(seed, index) >> 11) + 0.5) * 0x1p-53;
}

/* Normal, deviation 1 (Box and Muller). */
static inline double qz_random_normal(uint64_t seed, uint64_t index) {
    const double two_pi = 6.283185307179586476925;
    return sqrt(-2 * log(qz_random_unit(seed, 2 * index))) * cos(two_pi * qz_random_unit(seed, 2 * index + 1));
}

#endif
