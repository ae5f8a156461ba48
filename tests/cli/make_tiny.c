/* make_tiny FILE [olmo2]: writes the tests' tiny random model, for scripts; as a llama, or in OLMo 2's shape. */
#include "support.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    bool olmo = argc == 3 && !strcmp(argv[2], "olmo2");
    if (argc != 2 && !olmo) {
        fprintf(stderr, "make_tiny FILE [olmo2]\n");
        return 2;
    }
    tiny_file *f = olmo ? tiny_build_olmo2(NULL) : tiny_build(NULL);
    tiny_write(argv[1], f);
    tiny_free(f);
    return 0;
}
