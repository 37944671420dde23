# bash completion for ollana; made by `ollana completions bash`.
_ollana() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local word command='' switches='' words=''
    COMPREPLY=()
    # --mode=both is three words here.
    if [[ $cur == '=' ]]; then
        cur=''
    elif [[ $prev == '=' && $COMP_CWORD -gt 2 ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $prev in
@values@    esac
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in
        @all_names@) command=$word; break ;;
        esac
    done
    case ${command:-serve} in
@own@    esac
    if [[ $cur == -* ]]; then
        words="@all_flags@ --help --version $switches"
    elif [[ -z $command ]]; then
        words='@some_names@'
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _ollana ollana
