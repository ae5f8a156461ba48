/* What the tests ask of the shim beyond CUDA's own functions. C. */
#ifndef SHIM_H
#define SHIM_H

#include <stddef.h>

/* In which order the threads of a block, and the blocks, run between their barriers: 0 as numbered, 1 backwards, 2 and more shuffled by that
 * seed. A kernel whose result changes lacks a barrier, or adds up in an order that it does not control. */
/* For whole programs: the environment's SHIM_LOSE_AFTER and SHIM_MEMORY_MB are shim_lose_after and shim_memory from the start. */
#ifdef __cplusplus
extern "C" {
#endif
void shim_order(int order);
void shim_cards(int n);            /* cards there are; 1 to begin with */
void shim_memory(size_t bytes);    /* of the card; allocations beyond fail */
size_t shim_memory_used(void);
void shim_lose_card(int lose);     /* every call fails from now on, as after a fault; 0: a new process, so to speak */
void shim_lose_after(long n);      /* the card is lost when n more kernels have been started */
void shim_blas(int there);         /* whether a new pool finds cuBLAS */
long shim_waits(void);             /* times that memory was given back in a way that waits for the whole card */
void shim_pools(int there);        /* whether a card that is opened now has memory in a stream's order; 1 to begin with */
long shim_records(void);           /* recordings made so far */
long shim_launches(void);          /* kernels started so far; those of a graph count each time */
#ifdef __cplusplus
}
#endif

#endif
