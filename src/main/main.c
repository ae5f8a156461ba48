#include <stdio.h>

int main(void)
{
    puts("espalier");
    return 0;
}
