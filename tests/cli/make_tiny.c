/* make_tiny FILE: writes the tests' tiny random model, for scripts. */
#include "support.h"

#include <stdio.h>

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "make_tiny FILE\n");
        return 2;
    }
    make_tiny_gguf(argv[1], NULL);
    return 0;
}
