/* features: everything about features and adapting along them, but for the ways of adapting (methods/method.h) and their evaluation
 * (evaluate/evaluate.h). */
#ifndef ES_FEATURES_H
#define ES_FEATURES_H

#include "adapters.h"
#include "dictionaries.h"
#include "learner.h"

#endif
