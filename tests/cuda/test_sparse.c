#include "suite.h"
const suite_test sparse_tests[] = {{NULL, NULL}};
