/* Rotary position embedding: the angles' table. */
#ifndef BISUP_RUNTIME_ROPE_H
#define BISUP_RUNTIME_ROPE_H

#include "runtime/model/model.h"

/* table[position][0..half) are the cosines and table[position][half..head_dim) the sines of
 * position * frequency(i), with half = head_dim / 2; computed in double, rounded once. The table has
 * positions * head_dim floats. Scaling "llama3" is the one Llama 3.1's release describes: wavelengths longer
 * than the original context over low_freq_factor are stretched by `factor`, those shorter than it over
 * high_freq_factor are kept, with a linear blend of the frequencies in between. */
void rt_rope_fill_table(const rt_rope_config *rope, int head_dim, int positions, float *table);

#endif
