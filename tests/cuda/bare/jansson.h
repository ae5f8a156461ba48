/* Stands in for jansson's header where it is not installed: base.h names its type, and nothing that tests/gpu.sh builds uses it. */
#ifndef BARE_JANSSON_H
#define BARE_JANSSON_H
typedef struct json_t json_t;
#endif
