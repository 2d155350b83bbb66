/* The work on a tile, once for each instruction set. Define before including:

   NAME(x)   x with the set's suffix
   TARGET    the attribute that lets the compiler use the set
   LANES     floats in a vector
   MR, NV    tokens, and vectors of features, in a tile of accumulators

   The compiler writes the instructions; a fused multiply-add rounds once on every machine that has
   it, so all such sets give the same bits. */

typedef float NAME(vec) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum { NAME(rows) = MR, NAME(columns) = LANES * NV };

/* c[MR][columns] (+)= the sum over p < k of a[p][MR] * b[p][columns]. Each element is one chain of
   additions from 0, in the order of p, whatever the tile. */
TARGET static void NAME(multiply)(long k, const float *a, const float *b, float *c, long stride,
                                  int first)
{
    NAME(vec) sum[MR][NV];
    #pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
        #pragma GCC unroll 4
        for (int j = 0; j < NV; j++)
            sum[i][j] = (NAME(vec)){0};
    for (long p = 0; p < k; p++, a += MR, b += LANES * NV) {
        NAME(vec) row[NV];
        #pragma GCC unroll 4
        for (int j = 0; j < NV; j++)
            row[j] = *(const NAME(vec) *)(b + j * LANES);
        #pragma GCC unroll 16
        for (int i = 0; i < MR; i++)
            #pragma GCC unroll 4
            for (int j = 0; j < NV; j++)
                sum[i][j] += a[i] * row[j];
    }
    #pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
        #pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
            NAME(vec) *out = (NAME(vec) *)(c + i * stride + j * LANES);
            if (first)
                *out = sum[i][j];
            else
                *out += sum[i][j];
        }
}

/* Append what of c[width] + bias is strictly above its threshold; return how many that is. The
   output has room for all of it. */
TARGET static long NAME(compact)(const float *c, const float *bias, const float *threshold,
                                 const int32_t *names, long width, int32_t *features,
                                 float *activations)
{
    long n = 0;
    for (long start = 0; start < width; start += 16) {
        float pre[16];
        int any = 0;
        for (int j = 0; j < 16; j++) {
            pre[j] = c[start + j] + bias[start + j];
            any |= pre[j] > threshold[start + j];
        }
        if (!any)
            continue;
        for (int j = 0; j < 16; j++) {
            features[n] = names[start + j];
            activations[n] = pre[j];
            n += pre[j] > threshold[start + j];
        }
    }
    return n;
}

#undef NAME
#undef TARGET
#undef LANES
#undef MR
#undef NV
