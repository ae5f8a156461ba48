/* Making a dictionary, or a harvest for one, in the background of a studio: what the Jobs view starts. */
#ifndef ES_MAKING_H
#define ES_MAKING_H

typedef struct es_making { /* what is asked for, as it is typed. Plain: may be copied */
    char texts[1024];  /* a file as es_harvest takes it; or the folder of a harvest, which is trained on */
    char layers[64];   /* "12,14" */
    char sites[64];    /* "resid,mlp" (es_hook_site_named); "": the residual */
    bool harvest_only; /* activations are stored, nothing is trained */
    char recipe[16];   /* es_recipe_name */
    int features, k;
    uint64_t tokens;
    char out[1024];    /* a folder: of the harvest, of the dictionary, or of one a layer and site */
} es_making;
void es_making_default(es_making *m);

/* What it will take, into view->plan_text; view->plan_serial grows when it is there, plan_ok: it can be begun. Some seconds, for a few steps are tried. */
void es_studio_make_plan(es_studio *s, const es_making *m);
/* Begins it, or goes on with what was stopped or killed in that folder, as a job "train" or "harvest" of a thread of low priority: the chat goes on. One at a time.
 * es_studio_job_cancel stops it with its state saved, es_studio_close too. */
void es_studio_make(es_studio *s, const es_making *m);
/* The job that was stopped, if it is the newest of these. The next session knows it too, after a kill -9 as well; es_studio_job_cancel of a stopped one forgets it. */
void es_studio_make_again(es_studio *s, int job);

#endif
