/* What every event goes through, compiled: it becomes bytes, is held as one piece of memory, enters the queue, waits
 * while its person is out, and is joined with others into a body.
 *
 * Rules:
 *
 * 1. Optional. Without it cio_batch does the same, slower; what stands here also stands in operations.py
 *    (`_IN_PYTHON`, `_encode_event_in_python`), in queues.py (`DoorInPython`) and in people.py (`PeopleInPython`), and
 *    tests hold the two together, byte by byte.
 * 2. It knows no rule that it could break: where it is not sure that an event is the usual one and within every limit,
 *    the Python side has the word, and only the Python side refuses.
 * 3. The limited API of Python 3.11, so that one wheel for a platform serves every later Python.
 * 4. No state of its own: what it works with comes as an argument and lives in the objects it makes.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>

#define LENGTH(literal) ((Py_ssize_t)sizeof(literal) - 1)
#define PUT(at, from, size) (memcpy(at, from, (size_t)(size)), (at) += (size))

/* --------------------------------------------------------------------------------------------------- Operation */

/* One piece of memory for all of it. As a tuple of bytes, text and number it took 180 bytes beyond the encoded ones, 64
 * of them for the person's id, which stands in the body anyway: so where it can be cut out of there, it is. */
typedef struct {
    PyObject_VAR_HEAD /* its size: the bytes of the body */
    PyObject *key;    /* NULL where it is the text in the body between the next two */
    unsigned short key_begin;
    unsigned short key_end;
    PyObject *kind;
    long long number;
    char body[1];
} Operation;

#define BODY_SIZE(operation) Py_SIZE((PyObject *)(operation))

static Operation *
new_operation(PyTypeObject *type, Py_ssize_t size, PyObject *kind)
{
    Operation *operation = (Operation *)_PyObject_NewVar(type, size);
    if (operation != NULL) {
        operation->key = NULL;
        operation->key_begin = operation->key_end = 0;
        Py_INCREF(kind);
        operation->kind = kind;
        operation->number = 0;
    }
    return operation;
}

/* Whether it refers to nothing that could lead back to the operation, which the garbage collector does not look at. */
static int
is_key(PyObject *key, int may_be_several)
{
    if (PyUnicode_Check(key) || PyBytes_Check(key)) {
        return 1;
    }
    if (!may_be_several || !PyTuple_CheckExact(key)) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < PyTuple_Size(key); i++) {
        if (!is_key(PyTuple_GetItem(key, i), 0)) {
            return 0;
        }
    }
    return 1;
}

static PyObject *
operation_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    static char *names[] = {"body", "key", "kind", "number", NULL};
    PyObject *body, *key, *kind;
    long long number = 0;
    if (!PyArg_ParseTupleAndKeywords(args, named, "SOU|L:Operation", names, &body, &key, &kind, &number)) {
        return NULL;
    }
    if (!is_key(key, 1) || !PyUnicode_CheckExact(kind)) {
        PyErr_SetString(PyExc_TypeError, "key must be str, bytes or a tuple of these, and kind a plain str");
        return NULL;
    }
    Operation *operation = new_operation(type, PyBytes_Size(body), kind);
    if (operation != NULL) {
        Py_INCREF(key);
        operation->key = key;
        operation->number = number;
        memcpy(operation->body, PyBytes_AsString(body), (size_t)PyBytes_Size(body));
    }
    return (PyObject *)operation;
}

static void
operation_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(((Operation *)self)->key);
    Py_DECREF(((Operation *)self)->kind);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *
operation_body(PyObject *self, void *ignored)
{
    return PyBytes_FromStringAndSize(((Operation *)self)->body, BODY_SIZE(self));
}

static PyObject *
operation_key(PyObject *self, void *ignored)
{
    Operation *operation = (Operation *)self;
    if (operation->key == NULL) {
        return PyUnicode_FromStringAndSize(operation->body + operation->key_begin,
                                           operation->key_end - operation->key_begin);
    }
    Py_INCREF(operation->key);
    return operation->key;
}

static PyObject *
operation_number(PyObject *self, void *ignored)
{
    return PyLong_FromLongLong(((Operation *)self)->number);
}

static int
operation_set_number(PyObject *self, PyObject *value, void *ignored)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "number cannot be deleted");
        return -1;
    }
    long long number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred()) {
        return -1;
    }
    ((Operation *)self)->number = number;
    return 0;
}

static Py_ssize_t
operation_length(PyObject *self)
{
    return BODY_SIZE(self);
}

static PyObject *
operation_repr(PyObject *self)
{
    Operation *operation = (Operation *)self;
    return PyUnicode_FromFormat("Operation(body=<%zd bytes>, key=<hidden>, kind=%R, number=%lld)", BODY_SIZE(self),
                                operation->kind, operation->number);
}

static PyObject *
operation_compare(PyObject *self, PyObject *other, int question)
{
    if ((question != Py_EQ && question != Py_NE) || Py_TYPE(self) != Py_TYPE(other)) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    Operation *one = (Operation *)self, *another = (Operation *)other;
    int same = BODY_SIZE(self) == BODY_SIZE(other) && one->number == another->number
               && memcmp(one->body, another->body, (size_t)BODY_SIZE(self)) == 0;
    if (same) {
        same = PyObject_RichCompareBool(one->kind, another->kind, Py_EQ);
    }
    if (same > 0) {
        PyObject *key = operation_key(self, NULL), *other_key = operation_key(other, NULL);
        same = key == NULL || other_key == NULL ? -1 : PyObject_RichCompareBool(key, other_key, Py_EQ);
        Py_XDECREF(key);
        Py_XDECREF(other_key);
    }
    return same < 0 ? NULL : PyBool_FromLong(same == (question == Py_EQ));
}

static PyObject *
operation_reduce(PyObject *self, PyObject *ignored)
{
    Operation *operation = (Operation *)self;
    return Py_BuildValue("O(NNOL)", Py_TYPE(self), operation_body(self, NULL), operation_key(self, NULL),
                         operation->kind, operation->number);
}

static PyMethodDef operation_methods[] = {{"__reduce__", operation_reduce, METH_NOARGS, NULL}, {NULL}};

static PyMemberDef operation_members[] = {
    {"kind", T_OBJECT_EX, offsetof(Operation, kind), READONLY, NULL}, {NULL}};

static PyGetSetDef operation_getters[] = {
    {"body", operation_body, NULL, NULL, NULL},
    {"key", operation_key, NULL, NULL, NULL},
    {"number", operation_number, operation_set_number, NULL, NULL},
    {NULL}};

PyDoc_STRVAR(operation_doc, "Operation(body, key, kind, number=0)\n--\n\nSee operations.Operation.");

static PyType_Slot operation_slots[] = {
    {Py_tp_doc, (void *)operation_doc},
    {Py_tp_new, operation_new},
    {Py_tp_dealloc, operation_dealloc},
    {Py_tp_members, operation_members},
    {Py_tp_getset, operation_getters},
    {Py_tp_methods, operation_methods},
    {Py_sq_length, operation_length},
    {Py_tp_repr, operation_repr},
    {Py_tp_richcompare, operation_compare},
    {Py_tp_hash, PyObject_HashNotImplemented},
    {0, NULL}};

/* Not for the garbage collector: see is_key. By its name it is found in operations.py, so that what one process pickles
 * another one can read that has no extension. */
static PyType_Spec operation_spec = {"cio_batch.operations.Operation", offsetof(Operation, body), 1, Py_TPFLAGS_DEFAULT,
                                     operation_slots};

static int
is_operation_type(PyTypeObject *type)
{
    return PyType_GetSlot(type, Py_tp_dealloc) == (void *)operation_dealloc; /* nothing can inherit it */
}

/* How many operations there are in what must be a list of nothing else; -1 with an exception where it is not. */
static Py_ssize_t
count_of(PyObject *operations)
{
    Py_ssize_t count = PyList_CheckExact(operations) ? PyList_Size(operations) : -1;
    PyTypeObject *type = NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyTypeObject *next = Py_TYPE(PyList_GetItem(operations, i));
        if (next != type && !is_operation_type(next)) {
            count = -1;
        }
        type = next;
    }
    if (count < 0) {
        PyErr_SetString(PyExc_TypeError, "operations must be a list of operations");
    }
    return count;
}

PyDoc_STRVAR(join_doc, "join($module, operations, /)\n--\n\nThe bodies with commas between them.");

static PyObject *
join(PyObject *module, PyObject *operations)
{
    Py_ssize_t count = count_of(operations);
    if (count < 0) {
        return NULL;
    }
    Py_ssize_t size = count > 0 ? count - 1 : 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        size += BODY_SIZE(PyList_GetItem(operations, i));
    }
    PyObject *joined = PyBytes_FromStringAndSize(NULL, size);
    if (joined == NULL) {
        return NULL;
    }
    char *at = PyBytes_AsString(joined);
    for (Py_ssize_t i = 0; i < count; i++) {
        Operation *operation = (Operation *)PyList_GetItem(operations, i);
        if (i > 0) {
            *at++ = ',';
        }
        PUT(at, operation->body, BODY_SIZE(operation));
    }
    return joined;
}

/* A list of what a function makes of each operation. */
static PyObject *
map_operations(PyObject *operations, PyObject *(*make)(PyObject *, void *), void *context)
{
    Py_ssize_t count = PyList_CheckExact(operations) ? PyList_Size(operations) : 0;
    PyObject *made = PyList_New(count); /* before the look at the list, because the garbage collector may run in it */
    if (made != NULL && count_of(operations) != count) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_RuntimeError, "operations were changed meanwhile");
        }
        Py_CLEAR(made);
    }
    for (Py_ssize_t i = 0; made != NULL && i < count; i++) {
        PyObject *each = make(PyList_GetItem(operations, i), context);
        if (each == NULL) {
            Py_CLEAR(made);
        }
        else {
            PyList_SetItem(made, i, each);
        }
    }
    return made;
}

PyDoc_STRVAR(keys_of_doc, "keys_of($module, operations, /)\n--\n\nThe key of each.");

static PyObject *
keys_of(PyObject *module, PyObject *operations)
{
    return map_operations(operations, operation_key, NULL);
}

PyDoc_STRVAR(kinds_of_doc, "kinds_of($module, operations, /)\n--\n\nAll kinds among them.");

static PyObject *
kinds_of(PyObject *module, PyObject *operations)
{
    PyObject *kinds = PySet_New(NULL), *last = NULL; /* first: see map_operations */
    Py_ssize_t count = kinds == NULL ? -1 : count_of(operations);
    if (count < 0) {
        Py_CLEAR(kinds);
    }
    for (Py_ssize_t i = 0; kinds != NULL && i < count; i++) {
        PyObject *kind = ((Operation *)PyList_GetItem(operations, i))->kind;
        if (kind != last && PySet_Add(kinds, kind) < 0) {
            Py_CLEAR(kinds);
        }
        last = kind;
    }
    return kinds;
}

static PyObject *
add_bytes(PyObject *operation, void *sum)
{
    *(Py_ssize_t *)sum += BODY_SIZE(operation) + 1;
    return PyLong_FromSsize_t(*(Py_ssize_t *)sum);
}

PyDoc_STRVAR(running_bytes_doc, "running_bytes($module, operations, /)\n--\n\n"
                                "For each the bytes of it and all before it, with a comma behind every one.");

static PyObject *
running_bytes(PyObject *module, PyObject *operations)
{
    Py_ssize_t sum = 0;
    return map_operations(operations, add_bytes, &sum);
}

/* ------------------------------------------------------------------------------------------------------ People */

/* A set of fingerprints of 64 bits. At most half of the table is in use; 0 is an empty place, and who does not stand at
 * the place that the fingerprint names stands in the row of full ones behind it. */
typedef struct {
    PyObject_HEAD
    uint64_t seed[2];
    uint64_t *table;
    size_t mask; /* its size, a power of two, less one */
    size_t count;
} People;

#define SMALLEST_TABLE 256
/* A table that shrank with each chunk that comes back would have to grow with the next one that goes out. */
#define SMALLEST_SHRUNK_TABLE 8192

enum { TEXT, BYTES }; /* kinds of keys, which never meet */

#define ROTATED(word, bits) (((word) << (bits)) | ((word) >> (64 - (bits))))
#define SIP_ROUND(a, b, c, d)                                                                                          \
    (a += b, c += d, b = ROTATED(b, 13) ^ a, d = ROTATED(d, 16) ^ c, a = ROTATED(a, 32), a += d, c += b,               \
     d = ROTATED(d, 21) ^ a, b = ROTATED(b, 17) ^ c, c = ROTATED(c, 32))

/* SipHash-1-3, which Python takes for its own dicts: who does not know the seed cannot choose ids that meet. */
static uint64_t
fingerprint(const People *people, const char *text, Py_ssize_t size, int kind)
{
    uint64_t a = people->seed[0] ^ 0x736f6d6570736575u, b = people->seed[1] ^ 0x646f72616e646f6du;
    uint64_t c = people->seed[0] ^ 0x6c7967656e657261u, d = people->seed[1] ^ 0x7465646279746573u;
    uint64_t word, rest = 0;
    unsigned char tail[8] = {0};
    tail[7] = (unsigned char)(size << 1 | kind);
    for (; size >= 8; size -= 8, text += 8) {
        memcpy(&word, text, 8);
        d ^= word;
        SIP_ROUND(a, b, c, d);
        a ^= word;
    }
    memcpy(tail, text, (size_t)size);
    memcpy(&rest, tail, 8);
    d ^= rest;
    SIP_ROUND(a, b, c, d);
    a ^= rest;
    c ^= 0xff;
    SIP_ROUND(a, b, c, d);
    SIP_ROUND(a, b, c, d);
    SIP_ROUND(a, b, c, d);
    word = a ^ b ^ c ^ d;
    return word == 0 ? 1 : word;
}

/* Of one key; 0 with an exception where it has none. */
static uint64_t
fingerprint_of_key(const People *people, PyObject *key)
{
    Py_ssize_t size;
    const char *text;
    if (PyBytes_Check(key)) {
        return fingerprint(people, PyBytes_AsString(key), PyBytes_Size(key), BYTES);
    }
    if (!PyUnicode_Check(key)) {
        PyErr_SetString(PyExc_TypeError, "a key must be str or bytes");
        return 0;
    }
    text = PyUnicode_AsUTF8AndSize(key, &size);
    return text == NULL ? 0 : fingerprint(people, text, size, TEXT);
}

/* Where it stands, or the empty place where it would. */
static size_t
place_of(const People *people, uint64_t print)
{
    size_t at = (size_t)print & people->mask;
    while (people->table[at] != 0 && people->table[at] != print) {
        at = (at + 1) & people->mask;
    }
    return at;
}

static int
resize(People *people, size_t size)
{
    uint64_t *before = people->table;
    size_t size_before = before == NULL ? 0 : people->mask + 1;
    uint64_t *table = PyMem_Calloc(size, sizeof(uint64_t));
    if (table == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    people->table = table;
    people->mask = size - 1;
    for (size_t i = 0; i < size_before; i++) {
        if (before[i] != 0) {
            table[place_of(people, before[i])] = before[i];
        }
    }
    PyMem_Free(before);
    return 0;
}

static int
add_print(People *people, uint64_t print)
{
    if (2 * (people->count + 1) > people->mask && resize(people, 2 * (people->mask + 1)) < 0) {
        return -1;
    }
    size_t at = place_of(people, print);
    int is_new = people->table[at] == 0;
    people->count += (size_t)is_new;
    people->table[at] = print;
    return is_new;
}

static void
remove_print(People *people, uint64_t print)
{
    size_t at = place_of(people, print), next = at;
    if (people->table[at] == 0) {
        return;
    }
    people->count -= 1;
    for (;;) { /* who stands behind it in the row moves up, unless that is in front of the place that is theirs */
        next = (next + 1) & people->mask;
        uint64_t other = people->table[next];
        if (other == 0) {
            break;
        }
        if (((next - (size_t)other) & people->mask) >= ((next - at) & people->mask)) {
            people->table[at] = other;
            at = next;
        }
    }
    people->table[at] = 0;
}

/* What is asked about a person, or done: -1 with an exception; everything else but 0 ends the asking. */
typedef int (*Question)(People *, uint64_t, void *);

static int
is_missing(People *people, uint64_t print, void *ignored)
{
    return people->table[place_of(people, print)] == 0;
}

static int
is_there(People *people, uint64_t print, void *ignored)
{
    return !is_missing(people, print, ignored);
}

/* The fingerprints that were added. */
typedef struct {
    uint64_t *prints;
    size_t count;
    size_t room;
} Added;

static int
add_new(People *people, uint64_t print, void *context)
{
    Added *added = context;
    if (added->count == added->room) {
        size_t room = added->room == 0 ? 64 : 2 * added->room;
        uint64_t *prints = PyMem_Realloc(added->prints, room * sizeof(uint64_t));
        if (prints == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        added->prints = prints;
        added->room = room;
    }
    int is_new = add_print(people, print);
    if (is_new > 0) {
        added->prints[added->count++] = print;
    }
    return is_new < 0 ? -1 : 0;
}

/* Ask about each whom an operation is about, until the answer is not 0. */
static int
ask_of(People *people, Operation *operation, Question question, void *context)
{
    PyObject *key = operation->key;
    if (key == NULL) {
        const char *text = operation->body + operation->key_begin;
        return question(people, fingerprint(people, text, operation->key_end - operation->key_begin, TEXT), context);
    }
    int several = PyTuple_CheckExact(key), answer = 0;
    for (Py_ssize_t i = 0; answer == 0 && i < (several ? PyTuple_Size(key) : 1); i++) {
        uint64_t print = fingerprint_of_key(people, several ? PyTuple_GetItem(key, i) : key);
        answer = print == 0 ? -1 : question(people, print, context);
    }
    return answer;
}

/* The same of each operation; 0 where there is none. */
static int
ask_of_all(People *people, PyObject *operations, Question question, void *context)
{
    Py_ssize_t count = count_of(operations);
    int answer = count < 0 ? -1 : 0;
    for (Py_ssize_t i = 0; answer == 0 && i < count; i++) {
        answer = ask_of(people, (Operation *)PyList_GetItem(operations, i), question, context);
    }
    return answer;
}

static PyObject *
people_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    static char *names[] = {"seed", NULL};
    PyObject *seed;
    if (!PyArg_ParseTupleAndKeywords(args, named, "S:People", names, &seed)) {
        return NULL;
    }
    People *people = NULL;
    if (PyBytes_Size(seed) != (Py_ssize_t)sizeof(people->seed)) {
        PyErr_Format(PyExc_ValueError, "seed must be %zd bytes, got %zd", sizeof(people->seed), PyBytes_Size(seed));
        return NULL;
    }
    people = (People *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (people == NULL) {
        return NULL;
    }
    memcpy(people->seed, PyBytes_AsString(seed), sizeof(people->seed));
    if (resize(people, SMALLEST_TABLE) < 0) {
        Py_CLEAR(people);
    }
    return (PyObject *)people;
}

static void
people_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyMem_Free(((People *)self)->table);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(people_add_doc, "add($self, operations, /)\n--\n\n"
                             "Add everybody whom they are about; return who was not there before, for remove().");

static PyObject *
people_add(PyObject *self, PyObject *operations)
{
    People *people = (People *)self;
    Added added = {NULL, 0, 0};
    PyObject *claim = NULL;
    if (ask_of_all(people, operations, add_new, &added) == 0) {
        claim = PyBytes_FromStringAndSize((char *)added.prints, (Py_ssize_t)(added.count * sizeof(uint64_t)));
    }
    for (size_t i = 0; claim == NULL && i < added.count; i++) {
        remove_print(people, added.prints[i]);
    }
    PyMem_Free(added.prints);
    return claim;
}

/* How many fingerprints there are in what add() returned; -1 with an exception where it is something else. */
static Py_ssize_t
prints_in(PyObject *claim)
{
    if (!PyBytes_Check(claim) || (size_t)PyBytes_Size(claim) % sizeof(uint64_t) != 0) {
        PyErr_SetString(PyExc_TypeError, "a claim must be what add() returned");
        return -1;
    }
    return PyBytes_Size(claim) / (Py_ssize_t)sizeof(uint64_t);
}

static uint64_t
print_in(PyObject *claim, Py_ssize_t number)
{
    uint64_t print;
    memcpy(&print, PyBytes_AsString(claim) + number * (Py_ssize_t)sizeof(print), sizeof(print));
    return print;
}

PyDoc_STRVAR(people_meet_doc, "meet($self, claim, /)\n--\n\n"
                              "Whether one of those whom add() of any set of this seed returned is among them.");

static PyObject *
people_meet(PyObject *self, PyObject *claim)
{
    Py_ssize_t count = prints_in(claim);
    int found = 0;
    for (Py_ssize_t i = 0; !found && i < count; i++) {
        found = is_there((People *)self, print_in(claim, i), NULL);
    }
    return count < 0 ? NULL : PyBool_FromLong(found);
}

PyDoc_STRVAR(people_remove_doc, "remove($self, claim, /)\n--\n\nRemove those whom add() returned.");

static PyObject *
people_remove(PyObject *self, PyObject *claim)
{
    People *people = (People *)self;
    Py_ssize_t count = prints_in(claim);
    if (count < 0) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        remove_print(people, print_in(claim, i));
    }
    size_t size = people->mask + 1, wanted = size;
    while (wanted > SMALLEST_SHRUNK_TABLE && people->count < wanted / 8) {
        wanted /= 2;
    }
    if (wanted < size && resize(people, wanted) < 0) {
        PyErr_Clear(); /* it is only larger than it need be */
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(people_has_all_doc,
             "has_all($self, operations, /)\n--\n\nWhether everybody whom they are about is among them.");

static PyObject *
people_has_all(PyObject *self, PyObject *operations)
{
    int missing = ask_of_all((People *)self, operations, is_missing, NULL);
    return missing < 0 ? NULL : PyBool_FromLong(!missing);
}

/* Whether an operation is about somebody among these people or in one of the two containers, which may be empty. */
static int
is_one_of(People *people, Operation *operation, PyObject *lanes, PyObject *closed)
{
    int found = ask_of(people, operation, is_there, NULL);
    if (found == 0 && (lanes != NULL || closed != NULL)) {
        PyObject *key = operation_key((PyObject *)operation, NULL);
        found = key == NULL ? -1 : 0;
        if (found == 0 && lanes != NULL) {
            found = PyDict_Contains(lanes, key);
        }
        if (found == 0 && closed != NULL) {
            found = PySet_Contains(closed, key);
        }
        Py_XDECREF(key);
    }
    return found;
}

PyDoc_STRVAR(people_sift_doc,
             "sift($self, operations, due, lanes, closed, /)\n--\n\n"
             "Part operations into those that may go and those that must wait: see people.PeopleInPython.sift.");

static PyObject *
people_sift(PyObject *self, PyObject *args)
{
    PyObject *operations, *lanes, *closed, *goes = NULL, *waits = NULL;
    Py_ssize_t due, waiting_due = 0, waiting_bytes = 0;
    if (!PyArg_ParseTuple(args, "OnO!O!:sift", &operations, &due, &PyDict_Type, &lanes, &PySet_Type, &closed)) {
        return NULL;
    }
    Py_ssize_t count = count_of(operations);
    if (count < 0) {
        return NULL;
    }
    lanes = PyDict_Size(lanes) > 0 ? lanes : NULL;
    closed = PySet_Size(closed) > 0 ? closed : NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        /* To compare a key may call into Python, and to make a list may collect garbage, which may do anything. */
        PyObject *operation = PyList_Size(operations) == count ? Py_NewRef(PyList_GetItem(operations, i)) : NULL;
        if (operation == NULL || !is_operation_type(Py_TYPE(operation))) {
            Py_XDECREF(operation);
            goto changed;
        }
        int found = is_one_of((People *)self, (Operation *)operation, lanes, closed);
        if (found > 0 && waits == NULL) {
            waits = PyList_New(0);
            goes = PyList_GetSlice(operations, 0, i);
            found = waits == NULL || goes == NULL ? -1 : found;
        }
        if (found > 0) {
            waiting_due += i < due;
            waiting_bytes += BODY_SIZE(operation);
        }
        if (found >= 0 && waits != NULL) {
            found = PyList_Append(found > 0 ? waits : goes, operation);
        }
        Py_DECREF(operation);
        if (found < 0) {
            goto failed;
        }
    }
    if (PyList_Size(operations) != count) {
        goto changed;
    }
    if (waits == NULL) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("NNnn", goes, waits, waiting_due, waiting_bytes);
changed:
    PyErr_SetString(PyExc_RuntimeError, "operations were changed meanwhile");
failed:
    Py_XDECREF(goes);
    Py_XDECREF(waits);
    return NULL;
}

static int
people_contains(PyObject *self, PyObject *key)
{
    uint64_t print = fingerprint_of_key((People *)self, key);
    return print == 0 ? -1 : is_there((People *)self, print, NULL);
}

static Py_ssize_t
people_length(PyObject *self)
{
    return (Py_ssize_t)((People *)self)->count;
}

static PyMethodDef people_methods[] = {
    {"add", people_add, METH_O, people_add_doc},
    {"remove", people_remove, METH_O, people_remove_doc},
    {"meet", people_meet, METH_O, people_meet_doc},
    {"has_all", people_has_all, METH_O, people_has_all_doc},
    {"sift", people_sift, METH_VARARGS, people_sift_doc},
    {NULL}};

PyDoc_STRVAR(people_doc, "People(seed)\n--\n\nThose whom operations are about: see people.PeopleInPython.");

static PyType_Slot people_slots[] = {
    {Py_tp_doc, (void *)people_doc},
    {Py_tp_new, people_new},
    {Py_tp_dealloc, people_dealloc},
    {Py_tp_methods, people_methods},
    {Py_sq_contains, people_contains},
    {Py_sq_length, people_length},
    {0, NULL}};

static PyType_Spec people_spec = {"cio_batch._speedups.People", sizeof(People), 0, Py_TPFLAGS_DEFAULT, people_slots};

/* ------------------------------------------------------------------------------------------------ encode_event */

/* What an encoder is bound to: a tuple, read by these indexes. */
enum { IN_PYTHON, HEADS, DUMPS, DEFAULT, OPTIONS, MAX_BYTES, KIND, OPERATION, BOUND };
/* The arguments of encode_event. */
enum { USER_ID, NAME, DATA, TIMESTAMP, ID, NOW, NEW_ID, ARGUMENTS };
/* An entry of `heads`. */
enum { SINCE, UNTIL, HEAD };

static const char OPENING[] = "{\"id\":\"";
static const char AFTER_PERSON[] = "\"},\"id\":\"";
static const char BEFORE_DATA[] = "\",\"attributes\":";
static const char END_WITHOUT_DATA[] = "\"}";

/* Whether an id is the same between quotes as it is by itself, and no rule about ids can mind it: of the rules the
 * longest text is 150 bytes, and the shortest that is forbidden ("." and "..") less than three. */
static int
is_plain_id(const char *text, Py_ssize_t size)
{
    if (size < 3 || size > 150) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        unsigned char letter = (unsigned char)text[i];
        if (letter <= ' ' || letter > '~' || letter == '"' || letter == '\\') {
            return 0;
        }
    }
    return 1;
}

/* Whether "null" occurs, which may be a NaN. Without a branch, so that compilers make it a loop over vectors: a search
 * that stops at every 'n' takes five times as long on 200 bytes. */
static int
holds_null(const char *text, Py_ssize_t size)
{
    unsigned char found = 0;
    for (Py_ssize_t i = 0; i + 3 < size; i++) {
        found |= (unsigned char)((text[i] == 'n') & (text[i + 1] == 'u') & (text[i + 2] == 'l') & (text[i + 3] == 'l'));
    }
    return found;
}

/* The usual event in its final bytes; NULL without an exception where this is not the usual event. */
static PyObject *
encode_usual(PyObject *bound, PyObject *const *args)
{
    PyObject *user_id = args[USER_ID], *data = args[DATA];
    PyObject *attributes = NULL, *ulid = NULL;
    Operation *operation = NULL;
    const char *encoded = NULL;
    Py_ssize_t user_size, ulid_size, encoded_size = 0;

    if (!PyUnicode_CheckExact(user_id) || !PyUnicode_CheckExact(args[NAME]) || args[TIMESTAMP] != Py_None
        || args[ID] != Py_None || (data != Py_None && !PyDict_CheckExact(data))) {
        return NULL;
    }
    const char *user = PyUnicode_AsUTF8AndSize(user_id, &user_size);
    if (user == NULL) { /* a lone surrogate */
        PyErr_Clear();
        return NULL;
    }
    if (!is_plain_id(user, user_size)) {
        return NULL;
    }

    double now = PyFloat_AsDouble(args[NOW]); /* first, because it may call into Python, which may change `heads` */
    PyObject *entry = PyDict_GetItemWithError(PyTuple_GetItem(bound, HEADS), args[NAME]);
    if (entry == NULL) {
        return NULL;
    }
    double since = PyFloat_AsDouble(PyTuple_GetItem(entry, SINCE));
    double until = PyFloat_AsDouble(PyTuple_GetItem(entry, UNTIL));
    if (PyErr_Occurred() || !(since <= now && now < until)) {
        return NULL;
    }
    PyObject *head = PyTuple_GetItem(entry, HEAD);
    Py_INCREF(head); /* what is called below may replace the entry */

    if (data != Py_None) {
        attributes = PyObject_CallFunctionObjArgs(PyTuple_GetItem(bound, DUMPS), data, PyTuple_GetItem(bound, DEFAULT),
                                                  PyTuple_GetItem(bound, OPTIONS), NULL);
        if (attributes == NULL) {
            if (PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_RecursionError)) {
                PyErr_Clear(); /* the Python side says where the fault is */
            }
            goto done;
        }
        encoded = PyBytes_AsString(attributes);
        if (encoded == NULL) {
            goto done;
        }
        encoded_size = PyBytes_Size(attributes);
        if (holds_null(encoded, encoded_size)) {
            goto done;
        }
    }

    ulid = PyObject_CallNoArgs(args[NEW_ID]);
    const char *id = ulid == NULL ? NULL : PyUnicode_AsUTF8AndSize(ulid, &ulid_size);
    if (id == NULL) {
        goto done;
    }
    const char *opening = PyBytes_AsString(head);
    if (opening == NULL) {
        goto done;
    }
    Py_ssize_t head_size = PyBytes_Size(head);
    Py_ssize_t size = head_size + LENGTH(OPENING) + user_size + LENGTH(AFTER_PERSON) + ulid_size
                      + (encoded == NULL ? LENGTH(END_WITHOUT_DATA) : LENGTH(BEFORE_DATA) + encoded_size + 1);
    if (size > PyLong_AsSsize_t(PyTuple_GetItem(bound, MAX_BYTES))) {
        goto done;
    }
    operation = new_operation((PyTypeObject *)PyTuple_GetItem(bound, OPERATION), size, PyTuple_GetItem(bound, KIND));
    if (operation == NULL) {
        goto done;
    }
    char *at = operation->body;
    PUT(at, opening, head_size);
    PUT(at, OPENING, LENGTH(OPENING));
    operation->key_begin = (unsigned short)(at - operation->body);
    PUT(at, user, user_size);
    operation->key_end = (unsigned short)(at - operation->body);
    PUT(at, AFTER_PERSON, LENGTH(AFTER_PERSON));
    PUT(at, id, ulid_size);
    if (encoded == NULL) {
        PUT(at, END_WITHOUT_DATA, LENGTH(END_WITHOUT_DATA));
    }
    else {
        PUT(at, BEFORE_DATA, LENGTH(BEFORE_DATA));
        PUT(at, encoded, encoded_size);
        *at = '}';
    }

done:
    Py_DECREF(head);
    Py_XDECREF(attributes);
    Py_XDECREF(ulid);
    return (PyObject *)operation;
}

PyDoc_STRVAR(encode_event_doc,
             "encode_event($self, user_id, name, data, timestamp, id, now, new_id)\n--\n\n"
             "Check and encode an event of a person: see operations._encode_event_in_python.");

static PyObject *
encode_event(PyObject *bound, PyObject *const *args, Py_ssize_t size, PyObject *names)
{
    if (size == ARGUMENTS && names == NULL) {
        PyObject *operation = encode_usual(bound, args);
        if (operation != NULL || PyErr_Occurred()) {
            return operation;
        }
    }
    /* As it was called. */
    PyObject *result = NULL, *positional = PyTuple_New(size), *named = NULL;
    if (positional == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        Py_INCREF(args[i]);
        PyTuple_SetItem(positional, i, args[i]);
    }
    if (names != NULL) {
        named = PyDict_New();
        for (Py_ssize_t i = 0; named != NULL && i < PyTuple_Size(names); i++) {
            if (PyDict_SetItem(named, PyTuple_GetItem(names, i), args[size + i]) < 0) {
                Py_CLEAR(named);
            }
        }
        if (named == NULL) {
            goto done;
        }
    }
    result = PyObject_Call(PyTuple_GetItem(bound, IN_PYTHON), positional, named);
done:
    Py_DECREF(positional);
    Py_XDECREF(named);
    return result;
}

static PyMethodDef encode_event_method = {
    "encode_event", (PyCFunction)(void (*)(void))encode_event, METH_FASTCALL | METH_KEYWORDS, encode_event_doc};

PyDoc_STRVAR(event_encoder_doc,
             "event_encoder($module, in_python, heads, dumps, default, options, max_bytes, kind, operation, /)\n--\n\n"
             "Make encode_event, which gives the usual event its bytes and leaves every other one to in_python.");

static PyObject *
event_encoder(PyObject *module, PyObject *args)
{
    PyObject *in_python, *heads, *dumps, *standard, *options, *max_bytes, *kind, *operation;
    if (!PyArg_ParseTuple(args, "OO!OOO!O!UO!:event_encoder", &in_python, &PyDict_Type, &heads, &dumps, &standard,
                          &PyLong_Type, &options, &PyLong_Type, &max_bytes, &kind, &PyType_Type, &operation)) {
        return NULL;
    }
    if (!is_operation_type((PyTypeObject *)operation)) {
        PyErr_SetString(PyExc_TypeError, "operation must be the class Operation of this module");
        return NULL;
    }
    Py_ssize_t most = PyLong_AsSsize_t(max_bytes);
    if (most < 0 || most > USHRT_MAX) { /* an operation knows places in its body as short numbers */
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_ValueError, "max_bytes must be between 0 and %d, got %zd", USHRT_MAX, most);
        }
        return NULL;
    }
    PyObject *bound = PyTuple_Pack(BOUND, in_python, heads, dumps, standard, options, max_bytes, kind, operation);
    if (bound == NULL) {
        return NULL;
    }
    PyObject *encoder = PyCFunction_NewEx(&encode_event_method, bound, NULL);
    Py_DECREF(bound);
    return encoder;
}

/* -------------------------------------------------------------------------------------------------------- Door */

typedef struct {
    PyObject_HEAD
    unsigned long thread;
    PyObject *is_running;
    PyObject *append;
    Py_ssize_t accepted;
    Py_ssize_t accepted_bytes;
    Py_ssize_t calm_operations;
    Py_ssize_t calm_bytes;
} Door;

static int
door_traverse(PyObject *self, visitproc visit, void *arg)
{
    Door *door = (Door *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(door->is_running);
    Py_VISIT(door->append);
    return 0;
}

static int
door_clear(PyObject *self)
{
    Door *door = (Door *)self;
    Py_CLEAR(door->is_running);
    Py_CLEAR(door->append);
    return 0;
}

static void
door_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    door_clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Whether the loop runs in this thread; -1 with an exception. */
static int
is_open(Door *door)
{
    if (door->thread == 0 || PyThread_get_thread_ident() != door->thread || door->is_running == NULL) {
        return 0;
    }
    PyObject *answer = PyObject_CallNoArgs(door->is_running);
    if (answer == NULL) {
        return -1;
    }
    int runs = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return runs;
}

PyDoc_STRVAR(open_to_doc, "open_to($self, thread, is_running, /)\n--\n\n"
                          "Take operations in this thread while that says yes; in thread 0 never.");

static PyObject *
door_open_to(PyObject *self, PyObject *args)
{
    Door *door = (Door *)self;
    unsigned long thread;
    PyObject *is_running;
    if (!PyArg_ParseTuple(args, "kO:open_to", &thread, &is_running)) {
        return NULL;
    }
    PyObject *before = door->is_running;
    Py_INCREF(is_running);
    door->is_running = is_running;
    door->thread = thread;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(is_open_doc, "is_open($self, /)\n--\n\nWhether operations are taken here and now.");

static PyObject *
door_is_open(PyObject *self, PyObject *ignored)
{
    int open = is_open((Door *)self);
    return open < 0 ? NULL : PyBool_FromLong(open);
}

PyDoc_STRVAR(accept_doc, "accept($self, operation, /)\n--\n\n"
                         "Queue an operation if there is nothing to think about; say whether it was queued.");

static PyObject *
door_accept(PyObject *self, PyObject *operation)
{
    Door *door = (Door *)self;
    int open = is_open(door);
    if (open <= 0) {
        return open < 0 ? NULL : PyBool_FromLong(0);
    }
    if (!is_operation_type(Py_TYPE(operation))) {
        PyErr_SetString(PyExc_TypeError, "an operation must be an Operation");
        return NULL;
    }
    Py_ssize_t accepted_bytes = door->accepted_bytes + BODY_SIZE(operation);
    if (door->accepted >= door->calm_operations || accepted_bytes >= door->calm_bytes || door->append == NULL) {
        return PyBool_FromLong(0);
    }
    PyObject *nothing = PyObject_CallFunctionObjArgs(door->append, operation, NULL);
    if (nothing == NULL) {
        return NULL;
    }
    Py_DECREF(nothing);
    door->accepted += 1;
    door->accepted_bytes = accepted_bytes;
    return PyBool_FromLong(1);
}

static PyMemberDef door_members[] = {
    {"accepted", T_PYSSIZET, offsetof(Door, accepted), 0, NULL},
    {"accepted_bytes", T_PYSSIZET, offsetof(Door, accepted_bytes), 0, NULL},
    {"calm_operations", T_PYSSIZET, offsetof(Door, calm_operations), 0, NULL},
    {"calm_bytes", T_PYSSIZET, offsetof(Door, calm_bytes), 0, NULL},
    {"append", T_OBJECT_EX, offsetof(Door, append), 0, NULL},
    {NULL}};

static PyMethodDef door_methods[] = {
    {"open_to", door_open_to, METH_VARARGS, open_to_doc},
    {"is_open", door_is_open, METH_NOARGS, is_open_doc},
    {"accept", door_accept, METH_O, accept_doc},
    {NULL}};

PyDoc_STRVAR(door_doc, "What every operation passes on its way into the queue: see queues.DoorInPython.");

static PyType_Slot door_slots[] = {
    {Py_tp_doc, (void *)door_doc},
    {Py_tp_members, door_members},
    {Py_tp_methods, door_methods},
    {Py_tp_traverse, door_traverse},
    {Py_tp_clear, door_clear},
    {Py_tp_dealloc, door_dealloc},
    {0, NULL}};

static PyType_Spec door_spec = {"cio_batch._speedups.Door", sizeof(Door), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, door_slots};

/* ------------------------------------------------------------------------------------------------------ module */

static int
add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type == NULL) {
        return -1;
    }
    int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed;
}

static int
fill(PyObject *module)
{
    if (add_type(module, &operation_spec) < 0 || add_type(module, &people_spec) < 0) {
        return -1;
    }
    return add_type(module, &door_spec);
}

static PyMethodDef methods[] = {{"event_encoder", event_encoder, METH_VARARGS, event_encoder_doc},
                                {"join", join, METH_O, join_doc},
                                {"keys_of", keys_of, METH_O, keys_of_doc},
                                {"kinds_of", kinds_of, METH_O, kinds_of_doc},
                                {"running_bytes", running_bytes, METH_O, running_bytes_doc},
                                {NULL}};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "cio_batch._speedups", "The compiled half of the hot path.", 0, methods, slots};

PyMODINIT_FUNC
PyInit__speedups(void)
{
    return PyModuleDef_Init(&definition);
}
