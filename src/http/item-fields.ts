import { ApiProperty, type ApiPropertyOptions } from '@nestjs/swagger';
import { _, Ajv, type ErrorObject, type SchemaObject, type ValidateFunction } from 'ajv';
import type { MemberShape } from './json-body';
import type { TextRule } from './text';
import { type ItemProblem, Items } from './validation';

type Class<T extends object = object> = new () => T;

interface Common {
  /** The field may be absent; null means the same. */
  readonly optional?: true;
  /** The field is required, and may be null. */
  readonly nullable?: true;
  /** The field may be given only together with this field of the item. */
  readonly with?: string;
  readonly default?: unknown;
  readonly example?: unknown;
}

interface IntegerForm extends Common {
  readonly type: 'integer';
  readonly minimum: number;
  /** Default: 2^53 - 1. */
  readonly maximum?: number;
}

/** A finite number, within the bounds if it has them. */
type NumberForm = Common & { readonly type: 'number' } & (
    | { readonly minimum: number; readonly maximum: number }
    | { readonly minimum?: never; readonly maximum?: never }
  );

interface BooleanForm extends Common {
  readonly type: 'boolean';
}

interface TextForm extends Common {
  readonly type: 'string';
  /** In characters as in JSON Schema: a character beyond U+FFFF counts as one. */
  readonly minLength?: number;
  readonly maxLength?: number;
  /** A further rule for the text. */
  readonly rule?: TextRule;
}

interface ChoiceForm extends Common {
  readonly type: 'choice';
  readonly of: readonly string[];
}

interface ListForm extends Common {
  readonly type: 'list';
  /** The class of the items, or their form. */
  readonly items: Class | IntegerForm | TextForm;
  /** The name of an item in messages; its plural must end in s. */
  readonly noun: string;
  readonly minItems?: number;
  readonly maxItems: number;
  readonly uniqueItems?: true;
  /** The items are checked one by one with {@link itemCheck}, so that an invalid one does not make the others invalid. */
  readonly judgedAlone?: true;
  /** The field is a repeatable query parameter: problems name no index, and it can't be null. */
  readonly inQuery?: true;
}

interface MapForm extends Common {
  readonly type: 'map';
  readonly values: IntegerForm | TextForm;
  readonly noun: string;
  readonly maxProperties?: number;
  /** The rule for names. */
  readonly names?: TextRule;
}

/** Any JSON, including null. */
interface AnyForm extends Common {
  readonly type: 'any';
  /** The text is kept as it was sent; `textOfMember` writes it. */
  readonly asSent?: true;
}

/** Not checked here, not even for presence, because other code checks it. */
interface UncheckedForm extends Common {
  readonly type: 'unchecked';
  /** How the OpenAPI document shows it. */
  readonly shown: ApiPropertyOptions;
}

/** The form of a field. Its check, its messages and its part of the OpenAPI document are derived from it. */
export type FieldForm =
  | IntegerForm
  | NumberForm
  | BooleanForm
  | TextForm
  | ChoiceForm
  | ListForm
  | MapForm
  | AnyForm
  | UncheckedForm;

/** An id: an integer from 1 to 2^53 - 1. */
export const ID = { type: 'integer', minimum: 1, maximum: Number.MAX_SAFE_INTEGER } as const;

const declared = new WeakMap<object, Map<string, FieldForm>>();

/**
 * Declares a field of a body, or of the items of a list in a body. Its comment becomes the description in the OpenAPI document.
 * All invalid fields of a body are reported, but only the first one of a list.
 */
export function Field(form: FieldForm): PropertyDecorator {
  return (target, property) => {
    const owner = target.constructor;
    const fields = declared.get(owner) ?? new Map<string, FieldForm>();
    declared.set(owner, fields.set(property as string, form));
    ApiProperty(shown(form))(target, property);
    const strict = lazily(() => compile(schemaOf(form, true)));
    const tolerant = lazily(() => compile(schemaOf(form, false)));
    Items(
      (value, isAgents) => {
        if (value === undefined && form.optional) return undefined;
        const problem = (isAgents ? tolerant : strict)(value);
        return problem && isInQuery(form) ? ['', problem[1]] : problem;
      },
      () => readOf(form),
    )(target, property);
  };
}

const isInQuery = (form: FieldForm): boolean => form.type === 'list' && form.inQuery === true;

/** Returns the first problem of a value, or undefined. */
export type Check = (value: unknown) => ItemProblem | undefined;

/** Creates a check for a single value of this form. */
export function valueCheck(form: FieldForm): Check {
  return lazily(() => compile(schemaOf(form, true)));
}

/**
 * Creates a check for a single item of an agent's list. It ignores undeclared fields, and allocates nothing if the item is
 * valid.
 */
export function itemCheck(target: Class): Check {
  return lazily(() => compile(classSchema(target, 'item', false)));
}

/** Compiles a check at its first use, because compiling takes milliseconds and would delay the start. */
function lazily(make: () => Check): Check {
  let check: Check | undefined;
  return (value) => {
    check ??= make();
    return check(value);
  };
}

function fieldsOf(target: Class): [string, FieldForm][] {
  const parent: unknown = Object.getPrototypeOf(target);
  const inherited =
    typeof parent === 'function' && parent !== Function.prototype ? fieldsOf(parent as Class) : [];
  return [...inherited, ...(declared.get(target) ?? [])];
}

/** Any JSON in OpenAPI 3.0, which has null only as a value of another type. */
const ANY_JSON = [
  { type: 'number', format: 'double', nullable: true },
  { type: 'string', nullable: true },
  { type: 'boolean', nullable: true },
  { type: 'object', nullable: true },
  { type: 'array', items: {}, nullable: true },
];

/** Describes a field of this form for the OpenAPI document. */
export function shown(form: FieldForm): ApiPropertyOptions {
  const { optional, nullable, example, default: byDefault } = form;
  return {
    ...shownForm(form),
    // For an object, `required` lists its members instead.
    ...(optional && (form.type === 'map' ? { selfRequired: false } : { required: false })),
    ...((optional || nullable) && !isInQuery(form) && { nullable: true }),
    ...(byDefault !== undefined && { default: byDefault }),
    ...(example !== undefined && { example }),
  } as ApiPropertyOptions;
}

function shownForm(form: FieldForm): object {
  switch (form.type) {
    case 'integer':
      return pick(form, 'type', 'minimum', 'maximum');
    case 'number':
      return { type: 'number', format: 'double', ...pick(form, 'minimum', 'maximum') };
    case 'boolean':
      return { type: 'boolean' };
    case 'string':
      return { ...pick(form, 'type', 'minLength', 'maxLength'), ...form.rule?.schema };
    case 'choice':
      return { enum: form.optional || form.nullable ? [...form.of, null] : form.of };
    case 'list':
      return {
        ...(isClass(form.items) ? { type: [form.items] } : { type: 'array', items: shownForm(form.items) }),
        ...pick(form, 'minItems', 'maxItems', 'uniqueItems'),
      };
    case 'map':
      return {
        type: 'object',
        additionalProperties: shownForm(form.values),
        ...pick(form, 'maxProperties'),
      };
    case 'any':
      return { anyOf: ANY_JSON };
    default:
      return form.shown;
  }
}

const isClass = (items: ListForm['items']): items is Class => typeof items === 'function';

/** Picks the named members that are present. */
function pick<T extends object>(from: T, ...names: (keyof T)[]): object {
  return Object.fromEntries(names.flatMap((name) => (from[name] === undefined ? [] : [[name, from[name]]])));
}

/** Returns which parts of a field are read from an agent's body. */
function readOf(form: FieldForm): MemberShape {
  if (form.type === 'any' && form.asSent) return { asSent: true };
  if (form.type !== 'list' || !isClass(form.items)) return {};
  return {
    members: Object.fromEntries(fieldsOf(form.items).map(([name, field]) => [name, readOf(field)])),
    ...(form.judgedAlone && { judgedAlone: form.maxItems }),
  };
}

/** Builds a JSON Schema whose `form` refers to its source, for the messages. */
function schemaOf(form: FieldForm, isStrict: boolean): SchemaObject {
  const schema = { ...checkedForm(form, isStrict), form };
  return (form.optional || form.nullable) && 'type' in schema ? { ...schema, nullable: true } : schema;
}

function checkedForm(form: FieldForm, isStrict: boolean): SchemaObject {
  switch (form.type) {
    case 'integer':
      return { maximum: Number.MAX_SAFE_INTEGER, ...shownForm(form) };
    case 'number':
      return pick(form, 'type', 'minimum', 'maximum');
    case 'boolean':
      return { type: 'boolean' };
    case 'string':
      return { ...pick(form, 'type', 'minLength', 'maxLength'), ...pick(form, 'rule') };
    case 'choice':
      return { ...shownForm(form) };
    case 'list':
      return {
        type: 'array',
        ...pick(form, 'minItems', 'maxItems', 'uniqueItems'),
        ...(!form.judgedAlone && {
          items: isClass(form.items)
            ? classSchema(form.items, form.noun, isStrict)
            : schemaOf(form.items, isStrict),
        }),
      };
    case 'map':
      return {
        type: 'object',
        ...pick(form, 'maxProperties'),
        ...(form.names && { propertyNames: { type: 'string', rule: form.names, form } }),
        additionalProperties: schemaOf(form.values, isStrict),
      };
    default:
      return {};
  }
}

function classSchema(target: Class, noun: string, isStrict: boolean): SchemaObject {
  const fields = fieldsOf(target);
  const required = fields.filter(([, { optional, type }]) => !optional && type !== 'unchecked');
  const together = fields.flatMap(([name, { with: other }]) => (other === undefined ? [] : [[name, other]]));
  return {
    type: 'object',
    noun,
    required: required.map(([name]) => name),
    properties: Object.fromEntries(
      fields.map(([name, form]) => [name, { ...schemaOf(form, isStrict), isMember: true }]),
    ),
    ...(isStrict && { additionalProperties: false }),
    ...(together.length > 0 && { together }),
  };
}

let ajv: Ajv | undefined;

function compile(schema: SchemaObject): Check {
  ajv ??= makeAjv();
  const validate: ValidateFunction = ajv.compile(schema);
  return (value) => {
    if (validate(value)) return undefined;
    const problem = problemOf(validate.errors?.[0] as ErrorObject);
    // Otherwise the errors would keep the request's data in memory.
    validate.errors = null;
    return problem;
  };
}

function makeAjv(): Ajv {
  const created = new Ajv({
    strict: true,
    // TypeScript has checked the schemas.
    meta: false,
    validateSchema: false,
    messages: false,
    verbose: true,
    // Each schema is compiled once.
    addUsedSchema: false,
  });
  created.addVocabulary(['form', 'noun', 'isMember']);
  // Like the library's own keywords, but characters are counted only if the length in UTF-16 units does not decide.
  created.removeKeyword('minLength').addKeyword({
    keyword: 'minLength',
    type: 'string',
    schemaType: 'number',
    code(cxt) {
      const { data, schema: least } = cxt;
      const count = cxt.gen.scopeValue('func', { ref: charactersIn });
      cxt.fail(_`${data}.length < ${2 * least - 1} && ${count}(${data}) < ${least}`);
    },
  });
  created.removeKeyword('maxLength').addKeyword({
    keyword: 'maxLength',
    type: 'string',
    schemaType: 'number',
    code(cxt) {
      const { data, schema: most } = cxt;
      const count = cxt.gen.scopeValue('func', { ref: charactersIn });
      cxt.fail(_`${data}.length > ${most} && (${data}.length > ${2 * most} || ${count}(${data}) > ${most})`);
    },
  });
  created.addKeyword({
    keyword: 'rule',
    type: 'string',
    code(cxt) {
      const problem = cxt.gen.scopeValue('func', { ref: (cxt.schema as TextRule).problem });
      cxt.fail(_`${problem}(${cxt.data}) !== undefined`);
    },
  });
  created.addKeyword({
    keyword: 'together',
    type: 'object',
    error: { message: '', params: ({ params }) => _`{name: ${params.name}, other: ${params.other}}` },
    code(cxt) {
      for (const [name, other] of cxt.schema as [string, string][]) {
        cxt.setParams({ name, other });
        cxt.fail(_`${cxt.data}[${name}] != null && ${cxt.data}[${other}] == null`);
      }
    },
  });
  return created;
}

const charactersIn = (text: string): number => [...text].length;

function problemOf(error: ErrorObject): ItemProblem {
  const { keyword, instancePath, params, propertyName, data } = error;
  const { form, noun, isMember } = error.parentSchema as { form: FieldForm; noun?: string; isMember?: true };
  const at = instancePath
    .split('/')
    .slice(1)
    .map((name) => name.replaceAll('~1', '/').replaceAll('~0', '~'));
  const within = (name: string | number, message: string): ItemProblem => [[...at, name].join('.'), message];
  if (keyword === 'required') return within(params.missingProperty, 'is required');
  if (keyword === 'additionalProperties')
    return within(params.additionalProperty, `is not a field of a ${noun}`);
  if (keyword === 'together') return within(params.name, `must come with a ${params.other}`);
  if (keyword === 'uniqueItems') return within(Math.max(params.i, params.j), 'is in the list already');
  if (propertyName !== undefined)
    return [at.join('.'), `must have names ${(form as MapForm).names?.problem(propertyName)}`];
  const message =
    isMember && data === null ? 'is required' : form ? messageOf(form, keyword, data) : 'must be an object';
  return [at.join('.'), message];
}

/** Describes a problem: the type, if it is wrong, else the range. */
function messageOf(form: FieldForm, keyword: string, data: unknown): string {
  const orNull = form.nullable ? ', or null' : '';
  switch (form.type) {
    case 'integer': {
      const { minimum, maximum } = form;
      const range = maximum === undefined ? `of at least ${minimum}` : `from ${minimum} to ${maximum}`;
      return `must be an integer ${range}${orNull}`;
    }
    case 'number': {
      const { minimum, maximum } = form;
      const range = minimum === undefined ? '' : ` from ${minimum} to ${maximum}`;
      return `must be a number${range}${orNull}`;
    }
    case 'boolean':
      return `must be true or false${orNull}`;
    case 'choice':
      return `must be one of ${form.of.join(', ')}${orNull}`;
    case 'string': {
      if (keyword === 'type') return `must be a string${orNull}`;
      if (keyword === 'rule') return form.rule?.problem(data as string) ?? '';
      return `must have ${quantity(form.minLength, form.maxLength)} characters`;
    }
    case 'list':
      return `must be a list of ${quantity(form.minItems, form.maxItems)} ${form.noun}s`;
    case 'map':
      return keyword === 'type'
        ? 'must be an object'
        : `must hold at most ${form.maxProperties} ${form.noun}s`;
    default:
      return 'is required';
  }
}

function quantity(least: number | undefined, most: number | undefined): string {
  if (least === undefined) return `at most ${most}`;
  return most === undefined ? `at least ${least}` : `${least} to ${most}`;
}
