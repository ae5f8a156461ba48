/* The arithmetic of a list: which row is chosen, which is on top. Rows themselves belong to the views. */
#include "ui_internal.h"

static void bound(ui_list *l)
{
    int page = l->page > 0 ? l->page : 1;
    if (l->at > l->n - 1)
        l->at = l->n - 1;
    if (l->at < 0)
        l->at = 0;
    if (l->top > l->n - page)
        l->top = l->n - page;
    if (l->top < 0)
        l->top = 0;
    if (l->at < l->top)
        l->top = l->at;
    if (l->at >= l->top + page)
        l->top = l->at - page + 1;
}

bool ui_list_key(ui_list *l, int key)
{
    int page = l->page > 1 ? l->page - 1 : 1;
    switch (key) {
    case 'j':
    case UI_DOWN: l->at++; break;
    case 'k':
    case UI_UP: l->at--; break;
    case UI_PAGE_DOWN:
        l->at += page;
        l->top += page;
        break;
    case UI_PAGE_UP:
        l->at -= page;
        l->top -= page;
        break;
    case UI_WHEEL_DOWN:
        l->at += 3;
        break;
    case UI_WHEEL_UP:
        l->at -= 3;
        break;
    case UI_HOME: l->at = 0; break;
    case 'G':
    case UI_END: l->at = l->n - 1; break;
    default: return false;
    }
    bound(l);
    return true;
}

void ui_list_fit(ui_list *l, int n, int page)
{
    l->n = n;
    l->page = page;
    bound(l);
}
