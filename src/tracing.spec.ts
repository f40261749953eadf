import { parseTraceparent, toTraceparent, trace } from './tracing';

const ID = '0af7651916cd43dd8448eb211c80319c';
const SPAN = 'b7ad6b7169203331';

describe('a traceparent', () => {
  it.each([
    [`00-${ID}-${SPAN}-01`, `00-${ID}-${SPAN}-01`],
    [`00-${ID}-${SPAN}-00`, `00-${ID}-${SPAN}-00`],
    // Flags that nobody knows yet are not passed on.
    [`00-${ID}-${SPAN}-ff`, `00-${ID}-${SPAN}-03`],
    // A later version may say more.
    [`01-${ID}-${SPAN}-01-what-comes`, `00-${ID}-${SPAN}-01`],
  ])('is read: %s', (text, again) => {
    const found = parseTraceparent(text);
    expect(found && toTraceparent(found)).toBe(again);
  });

  it.each([
    undefined,
    7,
    '',
    `00-${ID}-${SPAN}`,
    `00-${ID}-${SPAN}-01-more`,
    `ff-${ID}-${SPAN}-01`,
    `00-${ID.toUpperCase()}-${SPAN}-01`,
    `00-${'0'.repeat(32)}-${SPAN}-01`,
    `00-${ID}-${'0'.repeat(16)}-01`,
    `00-${ID}-${SPAN}-01, 00-${ID}-${SPAN}-01`,
    `01-${ID}-${SPAN}-01-${'x'.repeat(600)}`,
  ])('is ignored if it is malformed: %s', (text) => {
    expect(parseTraceparent(text)).toBeUndefined();
  });
});

describe("an extension's trace", () => {
  it('only does the work if traces are off', async () => {
    await expect(trace('look_up', { cached: true }, async () => 7)).resolves.toBe(7);
  });

  it.each(['Look up', 'example.com', '', 'x'.repeat(65)])('refuses the name "%s"', (name) => {
    expect(() => trace(name, {}, async () => 7)).toThrow(TypeError);
  });
});
