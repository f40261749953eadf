import fc from 'fast-check';
import { type Change, changesBetween, valueAt } from './changes';

/** Applies the operations of RFC 6902 that are used here. */
function patched(document: unknown, changes: readonly Change[]): unknown {
  const root = { '': structuredClone(document) } as Record<string, unknown>;
  for (const { op, path, value } of changes) {
    const names = path.split('/').map((name) => name.replaceAll('~1', '/').replaceAll('~0', '~'));
    const last = names.pop() as string;
    let place = root as Record<string, unknown>;
    for (const name of names) place = place[name] as Record<string, unknown>;
    if (Array.isArray(place)) {
      const index = Number(last);
      expect(index).toBeLessThan(place.length + (op === 'add' ? 1 : 0));
      place.splice(index, op === 'add' ? 0 : 1, ...(op === 'remove' ? [] : [structuredClone(value)]));
    } else {
      expect(Object.hasOwn(place, last)).toBe(op !== 'add');
      if (op === 'remove') delete place[last];
      else place[last] = structuredClone(value);
    }
  }
  return root[''];
}

test('lists what was added, removed and replaced, by JSON Pointers', () => {
  expect(
    changesBetween(
      { kept: { deep: [1, { a: null }] }, gone: 1, 'a/b~c': { x: 1 } },
      { kept: { deep: [1, { a: null }] }, 'a/b~c': { x: 2, y: [] }, '': false },
    ),
  ).toEqual([
    { op: 'remove', path: '/gone' },
    { op: 'replace', path: '/a~1b~0c/x', value: 2 },
    { op: 'add', path: '/a~1b~0c/y', value: [] },
    { op: 'add', path: '/', value: false },
  ]);
});

test('skips what is equal at both ends of a list', () => {
  expect(changesBetween({ a: ['x', 'y', 'z'] }, { a: ['w', 'x', 'y', 'z'] })).toEqual([
    { op: 'add', path: '/a/0', value: 'w' },
  ]);
  expect(changesBetween({ a: [1, 2, 3, 4, 5] }, { a: [1, 9, 5] })).toEqual([
    { op: 'replace', path: '/a/1', value: 9 },
    { op: 'remove', path: '/a/3' },
    { op: 'remove', path: '/a/2' },
  ]);
});

test('distinguishes values that only look equal', () => {
  expect(changesBetween({ a: 1, b: [], c: {}, d: null }, { d: null, c: {}, b: [], a: 1 })).toEqual([]);
  for (const [before, after] of [
    [1, '1'],
    [null, 'null'],
    [[], {}],
    [['1,2'], ['1', '2']],
    [{ a: 1 }, { b: 1 }],
  ])
    expect(changesBetween({ x: before }, { x: after })).not.toEqual([]);
});

test('turns any configuration into any other', () => {
  const name = fc.constantFrom('a', 'b', '', '0', '/', '~', '~1', 'length');
  const { value } = fc.letrec((tie) => ({
    value: fc.oneof(
      { depthSize: 'medium', withCrossShrink: true },
      fc.constantFrom(null, true, 0, 1, '', '0'),
      fc.array(tie('value'), { maxLength: 4 }),
      fc.dictionary(name, tie('value'), { maxKeys: 4 }),
    ),
  }));
  const config = fc.dictionary(name, value, { maxKeys: 5, noNullPrototype: true });
  fc.assert(
    fc.property(config, config, (before, after) => {
      // Plain objects, as JSON.parse returns them from the database.
      const [from, to] = JSON.parse(JSON.stringify([before, after]));
      const changes = changesBetween(from, to);
      expect(patched(from, changes)).toEqual(to);
      for (const [i, { op, path }] of changes.entries())
        if (op !== 'add')
          expect(valueAt(patched(from, changes.slice(0, i)), path)).toEqual(valueAt(from, path));
    }),
    { numRuns: 500 },
  );
});

test('is one replacement if the list would be too long', () => {
  const many = (value: number) => ({ ['x'.repeat(10_000)]: Array(1_000).fill(value) });
  expect(changesBetween(many(1), many(2))).toEqual([{ op: 'replace', path: '', value: many(2) }]);
  const flat = (value: number) => ({ list: Array(40_000).fill(value) });
  expect(changesBetween(flat(1), flat(2))).toEqual([{ op: 'replace', path: '', value: flat(2) }]);
});
