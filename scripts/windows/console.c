/* What a person does to a program's console, for tests: console PID ctrl-c|kill. Wine 8 has no Ctrl-Break,
 * and no window to close. */
#include <stdlib.h>
#include <string.h>
#include <windows.h>

int main(int count, char **words) {
    if (count != 3) return 2;
    DWORD pid = strtoul(words[1], NULL, 10);
    const char *what = words[2];
    if (!strcmp(what, "kill")) {
        HANDLE process = OpenProcess(PROCESS_TERMINATE, FALSE, pid);
        return !(process && TerminateProcess(process, 1));
    }
    FreeConsole();
    if (!AttachConsole(pid)) return 3;
    SetConsoleCtrlHandler(NULL, TRUE); /* It isn't meant for us. */
    return strcmp(what, "ctrl-c") || !GenerateConsoleCtrlEvent(CTRL_C_EVENT, 0);
}
