/* A sub-command of eval, in a file of its own for its length. */
#ifndef ES_MAIN_CMD_EVAL_ADAPT_H
#define ES_MAIN_CMD_EVAL_ADAPT_H

int eval_adapt(int argc, char **argv);

#endif
