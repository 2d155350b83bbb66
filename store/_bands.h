/* Bands of activations, as firings.py has them: a power of two wide, from 2^-8; outliers in the ends. */
#ifndef SCOPELAKE_BANDS_H
#define SCOPELAKE_BANDS_H
#include <stdint.h>
#include <string.h>

enum { KIND_BOS = 2, BANDS = 32, BANDS_LOG2_START = -8 };

static int band_of(float activation)
{
    uint32_t raw;
    memcpy(&raw, &activation, 4);
    int exponent = activation > 0 ? (int)(raw >> 23) : 0;
    int found = exponent - (127 + BANDS_LOG2_START);
    return found < 0 ? 0 : found >= BANDS ? BANDS - 1 : found;
}

#endif
