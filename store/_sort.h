/* Floats sorted by their bits. */
#ifndef SCOPELAKE_SORT_H
#define SCOPELAKE_SORT_H
#include <stdint.h>
#include <string.h>

enum {
    FINE_BITS = 13, /* Of a mantissa, below the ten that activations mostly have. */
    FINE = (1 << FINE_BITS) - 1,
    SMALL_RUN = 32, /* Up to which comparing beats counting. */
    MOST_BITS = 11, /* Of a digit. */
};

/* Bits that ascend with the float. */
static uint32_t key_of(uint32_t raw) { return raw ^ (raw >> 31 ? 0xFFFFFFFFu : 0x80000000u); }

static uint32_t raw_of(uint32_t key) { return key ^ (key >> 31 ? 0x80000000u : 0xFFFFFFFFu); }

static void insertion_sort(uint32_t *v, int64_t n)
{
    for (int64_t i = 1; i < n; i++) {
        const uint32_t one = v[i];
        int64_t j = i;
        for (; j > 0 && v[j - 1] > one; j--)
            v[j] = v[j - 1];
        v[j] = one;
    }
}

/* By the bits from `shift` on, of which there are `n_bits`, least digit first. */
static void radix_sort(uint32_t *v, uint32_t *other, int64_t n, uint32_t least, int shift, int n_bits)
{
    const int n_digits = (n_bits + MOST_BITS - 1) / MOST_BITS;
    const int width = n_digits ? (n_bits + n_digits - 1) / n_digits : 0;
    const uint32_t mask = (1u << width) - 1;
    uint32_t *from = v, *to = other;
    for (int digit = 0; digit < n_digits; digit++, shift += width) {
        int64_t at[1 << MOST_BITS];
        memset(at, 0, sizeof(*at) << width);
        for (int64_t i = 0; i < n; i++)
            at[((from[i] - least) >> shift) & mask]++;
        int64_t start = 0;
        for (uint32_t i = 0; i <= mask; i++) {
            const int64_t here = at[i];
            at[i] = start, start += here;
        }
        for (int64_t i = 0; i < n; i++)
            to[at[((from[i] - least) >> shift) & mask]++] = from[i];
        uint32_t *t = from;
        from = to, to = t;
    }
    if (from != v)
        memcpy(v, from, (size_t)n * 4);
}

/* Activations mostly lie within few powers of two and have few bits: digits are of what differs. */
static void sort_run(uint32_t *v, uint32_t *other, int64_t n)
{
    uint32_t all = 0, least = 0xFFFFFFFFu, most = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t raw = v[i], key = key_of(raw);
        all |= raw;
        least = key < least ? key : least, most = key > most ? key : most;
        v[i] = key;
    }
    if (n <= SMALL_RUN) {
        insertion_sort(v, n);
    } else {
        /* Of numbers of both signs the least and the others differ in the bits that are not kept. */
        const int shift = all & FINE || (least ^ most) >> 31 ? 0 : FINE_BITS;
        int n_bits = 0;
        while (n_bits < 32 && (uint64_t)(most - least) >> shift >> n_bits)
            n_bits++;
        radix_sort(v, other, n, least, shift, n_bits);
    }
    for (int64_t i = 0; i < n; i++)
        v[i] = raw_of(v[i]);
}

#endif
